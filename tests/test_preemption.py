"""SIGTERM and Ctrl-C: a run saves, ends with code 75, and goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support import tiny
from test_train import outcome

from spt_jax.cli import main as cli
from spt_jax.config.train import EvalConfig, LogConfig
from spt_jax.distributed import preemption
from spt_jax.distributed.preemption import listening, poll, shared
from spt_jax.errors import Preempted
from spt_jax.runs.checkpoints import Checkpoints
from spt_jax.runs.log import read_log
from spt_jax.train import fit


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    evaluation = EvalConfig(every=4, batch_size=8)  # with the baselines, for a second test
    config = tiny.train_config(folder, log=LogConfig(every=2, checkpoint_every=5), eval=evaluation)
    fit(config, folder / "run")
    return config, folder / "run"


def send(number=signal.SIGTERM):
    """Sends a signal to this process, and waits until it is noticed."""
    os.kill(os.getpid(), number)
    while preemption._notice is None:
        time.sleep(0.001)


def signal_at_call(monkeypatch, name, call):
    """A signal before that call of a function, counted from 1."""
    module, _, function = name.rpartition(".")
    real, calls = getattr(sys.modules[module], function), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            send()
        return real(*args, **kwargs)

    monkeypatch.setattr(name, counted)


# Dev has two batches and is evaluated at steps 4, 8 and 12; then test, which has one, twice.
@pytest.mark.parametrize(
    "where, call, step",
    [
        ("spt_jax.train.place_batch", 1, 1),
        pytest.param("spt_jax.train.place_batch", 7, 7, marks=pytest.mark.slow),
        ("spt_jax.train.place_batch", 8, 8),  # where an evaluation is due
        pytest.param("spt_jax.prediction.predictor.poll", 2, 4, marks=pytest.mark.slow),
        ("spt_jax.prediction.predictor.poll", 5, 12),  # in the evaluation of the last step
    ],
)
def test_a_signal_at_any_moment_changes_nothing(
    where, call, step, undisturbed, tmp_path, monkeypatch
):
    config, expected = undisturbed
    with monkeypatch.context() as patched, listening():
        signal_at_call(patched, where, call)
        with pytest.raises(Preempted, match=f"^ended by SIGTERM at step {step}, which is saved$"):
            fit(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert max(checkpoints.steps()) == step
    fit(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(expected)
    steps = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 13))


def test_a_signal_in_the_final_evaluation_leaves_a_finished_training(
    undisturbed, tmp_path, monkeypatch
):
    config, expected = undisturbed
    with monkeypatch.context() as patched, listening():
        signal_at_call(patched, "spt_jax.prediction.predictor.poll", 7)
        with pytest.raises(Preempted, match="^ended by SIGTERM$"):
            fit(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    fit(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(expected)


def test_the_clock_saves_too(undisturbed, tmp_path, monkeypatch):
    config, _ = undisturbed
    saved = []
    save = Checkpoints.save

    def noted(self, step, *args):
        saved.append(step)
        save(self, step, *args)

    monkeypatch.setattr(Checkpoints, "save", noted)
    log = LogConfig(every=2, checkpoint_every=100, checkpoint_minutes=1e-9)
    evaluation = EvalConfig(every=12, batch_size=8, baselines=False)
    changed = tiny.train_config(tmp_path, log=log, eval=evaluation, steps=5)
    fit(changed, tmp_path / "run")
    assert saved == [2, 4, 5]
    with pytest.raises(ValueError, match="log.checkpoint_minutes is 0, expected more than 0"):
        LogConfig(checkpoint_minutes=0)


def test_the_command_line_ends_with_75_and_one_line(monkeypatch, capsys):
    def train(argv):
        raise Preempted("ended by SIGTERM at step 7, which is saved")

    monkeypatch.setitem(cli.COMMANDS, "train", train)
    assert cli.main(["train"]) == 75
    line = (
        "spt-jax: ended by SIGTERM at step 7, which is saved; the same command goes on from there"
    )
    assert capsys.readouterr().err == line + "\n"


def test_ctrl_c_is_a_notice_too_and_handlers_come_back(capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    poll()
    with listening():
        poll()
        send(signal.SIGINT)
        with pytest.raises(Preempted, match="^ended by SIGINT$"):
            poll()
    poll()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().err == (
        "SIGINT: the run saves and ends; a second signal ends it at once\n"
    )


def test_processes_leave_where_all_agree():
    asked = []

    def agreed(number):
        asked.append(number)
        return len(asked) == 3

    with listening(), shared(agreed):
        poll()
        poll()
        with pytest.raises(Preempted, match="^ended by SIGTERM$"):
            poll()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert asked == list(range(asked[0], asked[0] + 3))
    poll()


SECOND = """
import os, signal, time
from spt_jax.distributed import preemption
with preemption.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * preemption.SAME_NOTICE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_second_signal_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, timeout=60)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.count(b"SIGTERM: the run saves and ends") == 1
