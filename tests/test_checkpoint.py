"""A step is whole or it is not used; saving never touches what the run or an older step holds."""

import functools
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spt_jax.cli.printing import hide_orbax_log
from spt_jax.errors import RunError
from spt_jax.runs.checkpoints import Checkpoints, _orbax_thread

SLOTS = optax.chain(
    optax.adafactor(0.3), optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation()
)
METADATA = {"config": {"lr": 0.3, "name": None, "buckets": [32, 64]}, "fingerprint": "abc"}


class State(NamedTuple):
    step: jax.Array
    trained: dict
    opt_state: tuple
    best: dict
    extra: list


@functools.lru_cache
def make_state(step, length=4):
    """A state with holes, NamedTuples, several dtypes and Python numbers; random by `step`."""
    rng = np.random.default_rng(step)
    prompt = jnp.asarray(rng.normal(size=(length, 256)), jnp.float32)
    trained = {"t5": {"wi": None, "norm": None}, "prompt": prompt}
    opt_state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 50, x.dtype), SLOTS.init(trained)
    )
    return State(
        step=jnp.int32(step),
        trained=trained,
        opt_state=opt_state,
        best={"score": jnp.float32(-jnp.inf), "step": step, "prompt": prompt + 1},
        extra=[
            None,
            jnp.asarray([1.5, jnp.nan, step], jnp.bfloat16),
            np.int64(2**40 + step),
            np.float32(step / 3),
            np.arange(6.0).reshape(2, 3).T,
            np.array([True, False]),
            step / 7,
            step > 1,
        ],
    )


def make_small(step):
    """Few leaves, for tests that restore often; the prompt is too large to be stored inline."""
    prompt = np.random.default_rng(step).normal(size=(40, 256)).astype(np.float32)
    return {"prompt": jnp.asarray(prompt), "hole": None, "count": jnp.int32(step), "half": step / 2}


def same(a, b):
    """Same structure, types, dtypes, shapes and bits."""

    def leaf(x, y):
        assert type(x) is type(y)
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(leaf, a, b)
    return True


def saved(folder, *steps, make=make_state):
    """Makes a folder with these steps."""
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(step), METADATA)


def restored_step(folder, warnings, make=make_state):
    """The step restored, checked bit by bit, with a warning for each newer one."""
    with Checkpoints(folder) as checkpoints:
        warnings.clear()
        found = checkpoints.restore_newest(make(0))
        assert same(found.state, make(found.step))
        assert found.metadata == METADATA
        newer = [step for step in reversed(checkpoints.steps()) if step > found.step]
    messages = [r.getMessage() for r in warnings.records]
    assert len(messages) == len(newer)
    for step, message in zip(newer, messages):
        assert f"checkpoint {step} in {folder} is not usable (" in message
        assert message.endswith("; trying the one before") and "\n" not in message
    return found.step


def test_everything_comes_back_bitwise(tmp_path, caplog, capfd):
    saved(tmp_path / "made" / "here", 1, 20, 300)
    assert restored_step(tmp_path / "made" / "here", caplog) == 300
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_no_steps_is_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(make_state(0)) is None


def test_the_template_may_be_abstract_and_says_where(tmp_path):
    saved(tmp_path, 1)
    last = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    template = make_state(0)
    placed = jax.device_put(template.trained["prompt"], last)
    abstract = jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=last)
    extra = [template.extra[0], abstract, *template.extra[2:]]
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore_newest(
            template._replace(trained={**template.trained, "prompt": placed}, extra=extra)
        ).state
    assert same(state, make_state(1))
    assert state.trained["prompt"].sharding == last and state.extra[1].sharding == last
    assert not state.best["prompt"].committed  # as the template's: follows other arguments


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def next_step(state):
        return jax.tree.map(lambda x: x * 0 + 7, state)

    held = threading.Event()
    with Checkpoints(tmp_path) as checkpoints:
        # Nothing is written before the state is overwritten.
        _orbax_thread().submit(held.wait, 20)
        state = {"prompt": jnp.arange(1000.0), "count": jnp.int32(3)}
        checkpoints.save(1, state, {})
        given = state["prompt"]
        state = jax.block_until_ready(next_step(state))
        assert given.is_deleted()  # its buffer was given to the new state
        assert checkpoints.steps() == []  # save has returned while the writing had not begun
        held.set()
        found = checkpoints.restore_newest(state)
    assert same(found.state, {"prompt": jnp.arange(1000.0), "count": jnp.int32(3)})


def restored_after(folder, warnings, damages):
    """The steps restored with one file of step 2 damaged at a time, in each way."""
    saved(folder, 1, 2, make=make_small)
    found = {}
    for path in sorted(path for path in (folder / "2").rglob("*") if path.is_file()):
        data = path.read_bytes()
        for damage in damages:
            damage(path, data)
            found.setdefault(path, []).append(restored_step(folder, warnings, make_small))
            path.write_bytes(data)
    assert restored_step(folder, warnings, make_small) == 2
    return found


def vital(folder, found):
    """The files without which a step cannot be whole, with the largest: the array's bytes."""
    names = ("metadata/metadata", "state/_METADATA", "state/manifest.ocdbt")
    return [*(folder / "2" / name for name in names), max(found, key=lambda p: p.stat().st_size)]


def test_a_flipped_byte_in_any_file_is_harmless_or_found(tmp_path, caplog, capfd):
    rng = random.Random(0)

    def flip(path, data, *, last=False):
        broken = bytearray(data)
        broken[-1 if last else rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)

    found = restored_after(tmp_path, caplog, [flip, flip, functools.partial(flip, last=True)])
    assert len(found) >= 10
    assert all(1 in found[path] for path in vital(tmp_path, found))
    assert capfd.readouterr().err == ""


def test_a_truncated_or_lost_file_is_harmless_or_found(tmp_path, caplog, capfd):
    damages = [
        lambda path, data: path.write_bytes(data[: len(data) // 2]),
        lambda path, data: path.unlink(),
    ]
    found = restored_after(tmp_path, caplog, damages)
    assert all(found[path] == [1, 1] for path in vital(tmp_path, found))
    assert capfd.readouterr().err == ""


def test_a_value_changed_in_the_json_is_found(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / "metadata" / "metadata"
    path.write_text(path.read_text().replace("0.3", "0.7"))
    assert restored_step(tmp_path, caplog) == 1
    assert "its content differs from its sha256" in caplog.text


def test_an_empty_newest_folder_and_a_lost_item_are_passed_over(tmp_path, caplog):
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "4").mkdir()
    shutil.rmtree(tmp_path / "3" / "metadata")
    shutil.rmtree(tmp_path / "2" / "state")
    assert restored_step(tmp_path, caplog) == 1


def test_a_step_under_another_number_is_not_that_step(tmp_path, caplog):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "5")
    assert restored_step(tmp_path, caplog) == 1


def test_no_whole_step_is_an_error_and_deletes_nothing(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "metadata" / "metadata").write_text("{}")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(RunError, match=f"checkpoints 1, 2 in {tmp_path} is whole.*--overwrite"):
            checkpoints.restore_newest(make_state(0))
        assert checkpoints.steps() == [1, 2]
    assert len(caplog.records) == 2


def test_the_run_goes_on_over_a_broken_step_and_keeps_it_aside(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    (tmp_path / "2" / "state" / "_METADATA").write_text("{}")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore_newest(make_state(0)).step == 1
        assert checkpoints.steps() == [1, 2]  # restoring changes nothing
        checkpoints.save(2, make_state(2), METADATA)
    assert (tmp_path / "2.unusable").is_dir()
    assert restored_step(tmp_path, caplog) == 2


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (2, 9, 10, 100):
            checkpoints.save(step, make_state(step), METADATA)
        checkpoints.wait()
        assert checkpoints.steps() == [10, 100]
    assert sorted(os.listdir(tmp_path)) == [".lock", "10", "100"]


def test_a_save_that_lies_does_not_cost_the_only_whole_step(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), METADATA)
        checkpoints.wait()
        save = checkpoints._orbax.save

        def lying_disk(folder, *, args):
            save(folder, args=args)
            (folder / "state" / "manifest.ocdbt").write_bytes(b"")

        checkpoints._orbax.save = lying_disk
        checkpoints.save(2, make_state(2), METADATA)
        with pytest.raises(RunError, match="checkpoint 2 could not be written .*1 is untouched"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert restored_step(tmp_path, caplog) == 1


def test_what_a_killed_process_left_is_removed(tmp_path, caplog):
    saved(tmp_path, 1)
    for name in ("2.orbax-checkpoint-tmp", "0.deleted"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    assert restored_step(tmp_path, caplog) == 1
    assert sorted(os.listdir(tmp_path)) == [".lock", "1"]


def test_a_full_disk_is_one_line(tmp_path, caplog):
    # A limit on the size of a file stands in for a full disk: several arrays fail at once.
    code = f"""
import resource, numpy as np
from spt_jax.runs.checkpoints import Checkpoints
from spt_jax.cli.printing import hide_orbax_log
from spt_jax.errors import RunError
hide_orbax_log()
state = {{str(i): np.random.default_rng(i).random(200_000) for i in range(6)}}
with Checkpoints({str(tmp_path)!r}, keep=1) as checkpoints:
    checkpoints.save(1, state, {{}})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for step in (2, 3):
        checkpoints.save(step, state, {{}})
        try:
            checkpoints.wait()
        except RunError as error:
            print(error)
    checkpoints.save(4, state, {{}})
    try:
        checkpoints.close()
    except RunError as error:
        print(error)
with Checkpoints({str(tmp_path)!r}) as checkpoints:
    found = checkpoints.restore_newest(state)
    print(found.step, all((found.state[k] == state[k]).all() for k in state))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 0
    *errors, last = done.stdout.splitlines()
    assert errors == [
        f"checkpoint {step} could not be written to {tmp_path}: File too large (checkpoint 1 is "
        "untouched); free space or fix the folder, and run the same command again"
        for step in (2, 3, 4)
    ]
    assert last == "1 True"


def test_a_failed_save_is_raised_by_the_next_one_and_hides_no_other_error(tmp_path):
    def fail(folder, **kwargs):
        os.mkdir(f"{folder}.orbax-checkpoint-tmp")
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyError, match="loop"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints._orbax.save = fail
            checkpoints.save(1, make_state(1), METADATA)
            with pytest.raises(RunError, match="1 could not.*No space left.*there is no older one"):
                checkpoints.save(2, make_state(2), METADATA)
            checkpoints.save(2, make_state(2), METADATA)
            raise KeyError("loop")
    assert os.listdir(tmp_path) == [".lock"]


LOOP = """
import sys, numpy as np
from spt_jax.runs.checkpoints import Checkpoints
state = lambda step: {str(i): np.full((60, 700), step + i / 8) for i in range(4)}
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    found = checkpoints.restore_newest(state(0))
    start = 0
    if found:
        start = found.step
        assert all((found.state[k] == v).all() for k, v in state(start).items())
    print(start, flush=True)
    for step in range(start + 1, start + 10_000):
        checkpoints.save(step, state(step), {"step": step})
"""


@pytest.mark.slow
def test_sigkill_during_saves_leaves_whole_steps(tmp_path, caplog):
    rng, starts = random.Random(time.time_ns()), []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        starts.append(int(process.stdout.readline()))
        with pytest.raises(RunError, match=f"another process is using {tmp_path}; wait for it"):
            Checkpoints(tmp_path)
        while not any(name == f"{starts[-1] + 5}" for name in os.listdir(tmp_path)):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        assert process.communicate()[1] == ""  # no warning: what it found was whole
    assert starts[0] == 0 and starts[1] >= 5 and starts[2] >= starts[1] + 5
    template = {str(i): np.zeros((60, 700)) for i in range(4)}
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_newest(template)
        assert found.step == checkpoints.steps()[-1] >= starts[2] + 5
    assert all((value == found.step + int(i) / 8).all() for i, value in found.state.items())
    assert caplog.records == []


def test_orbax_alone_reads_the_prompt(tmp_path):
    state = {
        "step": jnp.int32(3),
        "best": {"trained": {"t5": None, "prompt": jnp.ones((5, 8)) / 3}},
    }
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3000, state, METADATA)
    code = f"""
import sys
import orbax.checkpoint as ocp
state = ocp.StandardCheckpointer().restore({str(tmp_path / "checkpoints" / "3000" / "state")!r})
prompt = state["best"]["trained"]["prompt"]
with ocp.CheckpointManager({str(tmp_path / "checkpoints")!r}) as manager:
    again = manager.restore(
        manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )
assert (again.state["best"]["trained"]["prompt"] == prompt).all()
assert "spt_jax" not in sys.modules
print(prompt.dtype, prompt.shape, prompt.tobytes().hex())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = np.ones((5, 8), np.float32) / np.float32(3)
    assert done.stdout == f"float32 (5, 8) {expected.tobytes().hex()}\n", done.stderr


def test_a_checkpoint_of_another_run_is_named(tmp_path):
    saved(tmp_path, 1)
    template = make_state(0)
    with Checkpoints(tmp_path) as checkpoints:
        for wrong, match in (
            (
                make_state(0, length=5),
                r"its 'best/prompt' is float32\(4, 256\), expected .*\(5, 256",
            ),
            (template._replace(step=jnp.float32(0)), r"its 'step' is int32\(\), expected float32"),
            (template._replace(best=None), r"'best/prompt' is float32\(4, 256\), expected no such"),
            (template._replace(step={"a": 1}), r"its 'step' is int32\(\), expected no such leaf"),
            (
                template._replace(trained={"a": 1, **template.trained}),
                "'trained/a' is missing, exp",
            ),
        ):
            with pytest.raises(ValueError, match=match + ".*--overwrite"):
                checkpoints.restore_newest(wrong)


def test_bad_calls(tmp_path):
    with pytest.raises(ValueError, match="keep is 0 checkpoints, expected 1 or more"):
        Checkpoints(tmp_path, keep=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="a file is in its place"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(TypeError, match="leaf 'a/0' is a str, expected an array or a number"):
            checkpoints.save(1, {"a": ["text"]}, {})
        with pytest.raises(ValueError, match=r"leaf 'a' has shape \(0, 3\), expected at least one"):
            checkpoints.save(1, {"a": np.zeros((0, 3))}, {})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(1, {"a": 1}, {"config": object()})
        checkpoints.save(5, {"a": 1}, {})
        for step in (4, 5):
            with pytest.raises(ValueError, match=f"step {step} is not above 5, the newest in"):
                checkpoints.save(step, {"a": 1}, {})
        assert checkpoints.steps() == [5]


def test_commands_hide_the_log_of_orbax_and_no_other(caplog):
    hide_orbax_log()
    absl = logging.getLogger("absl")
    with caplog.at_level(logging.INFO):
        record = absl.makeRecord(
            "absl", logging.ERROR, "/x/orbax/checkpoint/a.py", 1, "no", (), None
        )
        absl.handle(record)
        absl.handle(absl.makeRecord("absl", logging.ERROR, "/x/other/a.py", 1, "yes", (), None))
    assert [r.getMessage() for r in caplog.records] == ["yes"]
