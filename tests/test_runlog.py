"""Logs and files of a run: whole lines, atomic files, one process per folder."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from spt_jax.errors import RunError
from spt_jax.runs.log import RunLog, lock_folder, read_log, write_atomic, write_json_atomic


def record(step):
    return {"step": step, "loss": np.float32(1 / (step + 1)), "score": step / 3}


def test_resumed_log_is_bitwise_the_undisturbed_one(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    with RunLog(whole) as log:
        for step in range(9):
            log.write(record(step))
    with RunLog(cut) as log:
        for step in range(7):
            log.write(record(step))
    with open(cut, "ab") as file:
        file.write(b'{"step": 7, "lo')
    with RunLog(cut, resume_at=4) as log:
        for step in range(5, 9):
            log.write(record(step))
    assert cut.read_bytes() == whole.read_bytes()
    assert [r["step"] for r in read_log(cut)] == list(range(9))
    assert read_log(cut)[2]["loss"] == float(np.float32(1 / 3))


def test_a_new_run_starts_an_empty_log(tmp_path):
    with RunLog(tmp_path / "log.jsonl") as log:
        log.write(record(0))
    RunLog(tmp_path / "log.jsonl").close()
    assert read_log(tmp_path / "log.jsonl") == []
    RunLog(tmp_path / "other.jsonl", resume_at=5).close()
    assert read_log(tmp_path / "other.jsonl") == []


def test_resuming_keeps_steps_up_to_and_with_the_checkpoint(tmp_path):
    with RunLog(tmp_path / "log.jsonl") as log:
        for step in (0, 4, 4, 5):
            log.write({"step": step})
    RunLog(tmp_path / "log.jsonl", resume_at=4).close()
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [0, 4, 4]


def test_numbers_that_are_not_finite_are_strings(tmp_path):
    values = {"a": float("nan"), "b": [float("inf"), {"c": np.float32("-inf")}], "d": np.int64(3)}
    with RunLog(tmp_path / "log.jsonl") as log:
        log.write({"step": 1, **values})
    write_json_atomic(tmp_path / "result.json", values)
    expected = {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": 3}
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, **expected}]
    assert json.loads((tmp_path / "result.json").read_text()) == expected


def test_a_line_survives_sigkill(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import os, signal\nfrom spt_jax.runs.log import RunLog\n"
        f"log = RunLog({str(path)!r})\nlog.write({{'step': 3}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert read_log(path) == [{"step": 3}]


def test_logs_need_no_jax():
    code = "import sys, spt_jax.runs.log; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_half_line_is_not_read(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 22}')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", "[1]", "5", '{"loss": 1}', '{"step": "1"}', "\x00\x00"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"log\.jsonl:2 is .*expected a JSON object.*--overwrite"):
        read_log(path)
    with pytest.raises(ValueError, match=r"log\.jsonl:2"):
        RunLog(path, resume_at=9)
    assert path.read_bytes() == before


def test_a_record_needs_a_step(tmp_path):
    with RunLog(tmp_path / "log.jsonl") as log:
        for bad in ({"loss": 1.0}, {"step": 1.5}, {"step": True}):
            with pytest.raises(ValueError, match="expected an integer step"):
                log.write(bad)
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.jsonl does not exist; expected a .jsonl file"):
        read_log(tmp_path / "no.jsonl")


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    log = tmp_path / "log.jsonl"
    code = f"""
import resource
from spt_jax.errors import RunError
from spt_jax.runs.log import RunLog, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for call in (
    lambda: write_atomic({str(path)!r}, b"x" * 5000),
    lambda: RunLog({str(log)!r}).write({{"step": 1, "text": "x" * 5000}}),
):
    try:
        call()
    except RunError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert "result.json could not be written (File too large); free space" in first
    assert "log.jsonl could not be written: 1000 of 5" in second
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "result.json"]
    assert read_log(log) == []


def test_write_atomic_replaces_the_file(tmp_path):
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_has_one_user(tmp_path):
    first = lock_folder(tmp_path / "run")
    with pytest.raises(RunError, match="another process is using .*run; wait for it to end or"):
        lock_folder(tmp_path / "run")
    first.close()
    lock_folder(tmp_path / "run").close()


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ValueError, match="cannot be a folder: a file is in its place"):
            lock_folder(path)
    assert (tmp_path / "run").read_text() == "mine"
