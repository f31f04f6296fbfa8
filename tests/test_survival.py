"""What a run says is saved survives: a power cut, as far as a process can know, and any signal.

`scripts/check_survival.py` sends the signals, in `.ci/run`; here it must see what is wrong.
"""

import importlib
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from spt_jax.prompts.file import save_prompt
from spt_jax.runs.checkpoints import Checkpoints
from spt_jax.train import fit

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Disk:
    """What `os.fsync` has brought to the disk: the size of a file, the names in a folder."""

    def __init__(self, monkeypatch):
        self._fsync, self._kept = os.fsync, {}
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, opened):
        self._fsync(opened)
        found = os.fstat(opened)
        self._kept[found.st_ino] = (
            set(os.listdir(opened)) if os.path.isdir(f"/proc/self/fd/{opened}") else found.st_size
        )

    def lost(self, folder):
        """What a power cut would take of a folder now."""
        lost = []
        for place in (folder, *folder.rglob("*")):
            kept = self._kept.get(place.stat().st_ino)
            if place.is_dir():
                names = {path.name for path in place.iterdir() if path.name != ".lock"}
                lost += [str(place / name) for name in names - (kept or set())]
            elif place.name != ".lock" and kept != place.stat().st_size:
                lost.append(str(place))
        return lost


@pytest.fixture
def disk(monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not show which file a descriptor is of")
    return Disk(monkeypatch)


def test_no_power_cut_takes_what_a_run_has_saved(disk, tmp_path, monkeypatch):
    config = tiny.train_config(tmp_path / "files")
    assert disk.lost(tmp_path / "files" / "tiny") == []  # a model, as `tune: model` leaves one
    read, steps = Checkpoints._read, []

    def read_back(self, step):
        steps.append(step)
        assert disk.lost(tmp_path / "new" / "run" / "checkpoints") == []
        return read(self, step)

    # A step is read back before older ones are deleted.
    monkeypatch.setattr(Checkpoints, "_read", read_back)
    fit(config, tmp_path / "new" / "run")
    assert steps == [3, 4, 6, 8, 9, 12]
    assert disk.lost(tmp_path / "new") == []
    assert disk.lost(tmp_path) == [str(tmp_path / "files" / "rows.jsonl")]  # it does see


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("check_survival")


def write_run(folder):
    """The files of a finished run of two steps."""
    manifest = folder / "checkpoints" / "2" / "metadata" / "metadata"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"sha256": "a"}')
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    (folder / "timing.jsonl").write_text('{"step": 2}\n')
    (folder / "result.json").write_text('{"steps": 2, "score": 50.0, "steps_per_second": 1.0}')
    save_prompt(folder / "prompt.safetensors", np.ones((2, 3), np.float32), {"step": 2})


def replace(name, old, new):
    """A change of a file."""
    return lambda run: (run / name).write_text((run / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    "change, found",
    [
        (replace("result.json", "1.0", "2.0"), []),
        (replace("result.json", "50.0", "60.0"), ["score in result.json"]),
        (replace("log.jsonl", '"loss": 1', '"loss": 3'), ["log.jsonl"]),
        (replace("log.jsonl", "1,", "2,"), ["a step is in log.jsonl twice", "log.jsonl"]),
        (replace("timing.jsonl", "\n", '\n{"step": 2}\n'), ["a step is in timing.jsonl twice"]),
        (replace("checkpoints/2/metadata/metadata", '"a"', '"b"'), ["checkpoint 2"]),
        (
            lambda run: save_prompt(
                run / "prompt.safetensors", np.full((2, 3), 2.0, np.float32), {"step": 2}
            ),
            ["prompt.safetensors"],
        ),
    ],
)
def test_the_check_sees_what_a_run_has_otherwise(script, change, found, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    write_run(whole)
    shutil.copytree(whole, run)
    change(run)
    assert script.differences(run, whole) == [f"{run}: {what}" for what in found]


@pytest.mark.parametrize(
    "number, moment, code, before, after, text, found",
    [
        ("SIGKILL", "saving", -9, 4, 8, "", []),
        ("SIGTERM", "starting", -15, 4, 4, "", []),
        ("SIGTERM", "training", 75, 4, 7, "ended by SIGTERM at step 7, which is saved", []),
        ("SIGTERM", "training", -15, 4, 4, "", ["exit code -15 after SIGTERM while training"]),
        ("SIGKILL", "never", 1, 4, 4, "", ["exit code 1 after no signal"]),
        ("SIGKILL", "saving", -9, 8, 4, "", ["step 8 was saved, and the newest is 4 now"]),
        (
            "SIGKILL", "training", -9, 8, 8, "resumed at step 4 of 48",
            ["step 8 was saved, and the run went on from 4"],
        ),
        (
            "SIGTERM", "training", 75, 4, 4, "ended by SIGTERM at step 7, which is saved",
            ["SIGTERM at step 7, and the newest that is saved is 4"],
        ),
        (
            "SIGKILL", "training", -9, 4, 4, "checkpoint 4 in x is not usable",
            ["a checkpoint was not whole"],
        ),
    ],
)  # fmt: skip
def test_the_check_sees_how_a_process_ended(
    script, number, moment, code, before, after, text, found
):
    assert script.wrong(signal.Signals[number], moment, code, before, after, text) == found
