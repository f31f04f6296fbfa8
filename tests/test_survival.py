"""What a run says is saved survives: a power cut, as far as a process can know."""

import os

import pytest
import tiny

from spt_jax.checkpoint import Checkpoints
from spt_jax.train import fit


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
