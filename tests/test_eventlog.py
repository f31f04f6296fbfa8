"""TensorBoard's files: the numbers of the JSONL log, read back by a reader written here."""

import importlib.util
import json
import struct
import sys

import pytest
from support import tiny

from spt_jax.config.train import LogConfig
from spt_jax.runs.log import RunLog
from spt_jax.runs.tensorboard import EventLog
from spt_jax.train import fit


def fields(data):
    """(number, value) of each field of a protobuf message; int, or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[at : at + size]
        at += size


def read_events(folder):
    """{(tag, step): value} of all files, the oldest first, and the steps purged from."""
    scalars, purged = {}, []
    for path in sorted(
        folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns
    ):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            (size,) = struct.unpack_from("<Q", data, at)
            event = dict(fields(data[at + 12 : at + 12 + size]))
            at += 16 + size
            if 7 in event:  # a session begins: what is at this step or later does not count
                purged.append(event.get(2, 0))
            if 5 in event:
                value = dict(fields(dict(fields(event[5]))[1]))
                scalars[value[1].decode(), event.get(2, 0)] = struct.unpack("<f", value[2])[0]
    return scalars, purged


tensorboardx = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)


@tensorboardx
def test_every_number_of_the_log_is_an_event(tmp_path):
    records = [
        {"step": 1, "loss": 2.5, "kind": "lm", "nan": float("nan"), "none": None},
        {"step": 2, "split": "dev", "score": 50.0, "metrics": {"f1": 25.0}, "on": True},
    ]
    with RunLog(
        tmp_path / "log.jsonl", listeners=lambda: [EventLog(tmp_path / "events", 0)]
    ) as log:
        for record in records:
            log.write(record)
    scalars, purged = read_events(tmp_path / "events")
    assert scalars == {("train/loss", 1): 2.5, ("dev/score", 2): 50.0, ("dev/metrics/f1", 2): 25.0}
    assert purged == []
    assert "tensorflow" not in sys.modules
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@tensorboardx
def test_resuming_forgets_what_is_after_the_step(tmp_path):
    for start in (0, 3):
        events = EventLog(tmp_path / "events", start)
        with RunLog(
            tmp_path / "log.jsonl", resume_at=start, listeners=lambda events=events: [events]
        ) as log:
            log.write({"step": start + 1, "loss": 1.0})
    scalars, purged = read_events(tmp_path / "events")
    assert {step for _, step in scalars} == {1, 4} and purged == [4]


@tensorboardx
def test_a_run_writes_both_logs(tmp_path):
    config = tiny.train_config(tmp_path, log=LogConfig(tensorboard=True), steps=4)
    fit(config, tmp_path / "run")
    scalars, _ = read_events(tmp_path / "run" / "events")
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        name = "score" if "split" in record else "loss"
        tag = f"{record.get('split', 'train')}/{name}"
        assert scalars[tag, record["step"]] == pytest.approx(record[name], rel=1e-6)
    fit(tiny.train_config(tmp_path, steps=4), tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "events").exists()


def test_without_the_extra_the_run_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny.train_config(tmp_path, log=LogConfig(tensorboard=True))
    with pytest.raises(ValueError, match=r"needs the package tensorboardX, .*jax\[tensorboard\]'"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
