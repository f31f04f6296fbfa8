"""Laps of a run by a clock that the test moves."""

import numpy as np
import pytest

from spt_jax.runs.log import RunLog, read_log
from spt_jax.runs.timing import Clock, summarize


class Time:
    """Stands for `time`; `sleep` moves it."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr("spt_jax.runs.timing.time", time)
    return time


def batches(time: Time, seconds: float):
    """Labels and batches of 4 rows, each made in `seconds`."""
    for width in (8, 8, 8, 16, 16, 8):
        time.sleep(seconds)
        yield {}, {"targets": np.zeros((4, width))}


def run(time: Time, timing: RunLog, peak: float | None) -> list[dict[str, float]]:
    """Six steps of 2 s; each is finished one step later, but the last at once."""
    clock = Clock(timing, lambda batch: 1000.0 * batch["targets"].shape[1], peak)
    shown, waiting = [], 0
    for step, _ in enumerate(clock.watch(batches(time, 0.5)), start=1):
        time.sleep(2)
        waiting += 1
        if step % 2 == 0:
            finished = waiting if step == 6 else waiting - 1
            shown.append(clock.lap(step, finished))
            waiting -= finished
    return shown


def test_a_lap_has_its_steps_and_the_first_is_left_out(time, tmp_path):
    with RunLog(tmp_path / "timing.jsonl") as timing:
        shown = run(time, timing, peak=20_000.0)
    # Steps 2 and 3 (8 wide), then 4, 5 and 6 (16, 16 and 8 wide), each lap in 2 * 2.5 s.
    assert read_log(tmp_path / "timing.jsonl") == [
        {
            "step": 4,
            "steps": 2,
            "examples": 8,
            "seconds": 5.0,
            "waiting_seconds": 1.0,
            "steps_per_second": 0.4,
            "examples_per_second": 1.6,
            "mfu": 0.16,
        },
        {
            "step": 6,
            "steps": 3,
            "examples": 12,
            "seconds": 5.0,
            "waiting_seconds": 1.0,
            "steps_per_second": 0.6,
            "examples_per_second": 2.4,
            "mfu": 0.4,
        },
    ]
    assert shown[0] == {}
    assert shown[1] == {"steps/s": 0.4, "examples/s": 1.6, "waiting%": 20.0, "mfu%": 16.0}
    assert summarize(read_log(tmp_path / "timing.jsonl")) == {
        "steps_per_second": 0.5,
        "examples_per_second": 2.0,
        "waiting_share": 0.2,
        "mfu": pytest.approx(0.28),
    }


def test_utilisation_is_left_out_where_the_peak_is_not_known(time, tmp_path):
    with RunLog(tmp_path / "timing.jsonl") as timing:
        shown = run(time, timing, peak=None)
    laps = read_log(tmp_path / "timing.jsonl")
    assert "mfu" not in laps[0] and "mfu%" not in shown[1]
    assert summarize(laps)["mfu"] is None


def test_what_passes_before_a_restart_is_in_no_lap(time, tmp_path):
    with RunLog(tmp_path / "timing.jsonl") as timing:
        clock = Clock(timing, lambda _: 0.0, None)
        watched = clock.watch(batches(time, 0.5))
        next(watched)
        clock.lap(1, 1)
        time.sleep(60)  # an evaluation
        clock.restart()
        next(watched)
        time.sleep(2)
        clock.lap(2, 1)
    [lap] = read_log(tmp_path / "timing.jsonl")
    assert (lap["seconds"], lap["waiting_seconds"]) == (2.5, 0.5)


def test_a_run_without_laps_has_no_speed():
    assert summarize([]) == {
        "steps_per_second": None,
        "examples_per_second": None,
        "waiting_share": None,
        "mfu": None,
    }
