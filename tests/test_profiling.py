"""A trace of the steps that were asked for, in the file that xprof opens."""

import jax
import jax.numpy as jnp
import pytest

from spt_jax.runs import profiling
from spt_jax.runs.profiling import StepTrace, libtpu_without_tpu


@pytest.fixture(autouse=True)
def _without_libtpu():
    if libtpu_without_tpu():
        pytest.skip("a test of this process has loaded libtpu, beside which jax cannot trace")


def test_libtpu_without_a_tpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "libtpu_without_tpu", lambda: True)
    with pytest.raises(ValueError, match="cannot trace: libtpu is loaded .* set JAX_PLATFORMS=cpu"):
        StepTrace(tmp_path, 1, start=0, stop=5)
    StepTrace(tmp_path, 0, start=0, stop=5)  # nothing is traced


def count_traced(folder) -> int:
    """How many steps the one trace in the folder holds.

    Not which: jax 0.12 aborts the process that reads an event's numbers.
    """
    [file] = folder.glob("plugins/profile/*/*.xplane.pb")
    assert file.stat().st_size > 0
    space = jax.profiler.ProfileData.from_file(str(file))
    lines = (line for plane in space.planes for line in plane.lines)
    return sum(event.name == "train" for line in lines for event in line.events)


@pytest.mark.parametrize(
    "steps, start, stop, expected",
    [
        (2, 0, 20, [11, 12]),
        pytest.param(2, 100, 120, [111, 112], marks=pytest.mark.slow),  # resumed
        (3, 0, 5, [3, 4, 5]),  # a short session warms up for less
        pytest.param(9, 4, 6, [5, 6], marks=pytest.mark.slow),
    ],
)
def test_the_trace_holds_the_steps_after_the_warm_up(
    tmp_path, capsys, steps, start, stop, expected
):
    add = jax.jit(lambda x: x + 1)
    state = jnp.zeros(())
    with StepTrace(tmp_path, steps, start=start, stop=stop) as trace:
        for number in range(start + 1, stop + 1):
            with trace.step(number, state):
                state = add(state)
    assert count_traced(tmp_path) == len(expected)
    said = f"traced steps {expected[0]} to {expected[-1]}; to see them: pip install xprof && xprof"
    assert said in capsys.readouterr().err


def test_devices_are_waited_for_where_the_trace_begins_and_ends_and_nowhere_else(
    tmp_path, monkeypatch
):
    waits = []
    monkeypatch.setattr(jax, "block_until_ready", waits.append)
    with StepTrace(tmp_path, 2, start=0, stop=20) as trace:
        for number in range(1, 21):
            with trace.step(number, f"state {number - 1}"):
                pass
    assert waits == ["state 10", "state 12"]


@pytest.mark.parametrize("steps, start, stop", [(0, 0, 20), (5, 20, 20)])
def test_nothing_is_traced_where_nothing_is_asked_for_or_left(tmp_path, steps, start, stop):
    with StepTrace(tmp_path, steps, start=start, stop=stop) as trace:
        for number in range(start + 1, stop + 1):
            with trace.step(number, None):
                pass
    assert list(tmp_path.iterdir()) == []
