"""The benchmark of mixed batches runs, all its ways write the same, and its output says so."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WAYS = {"mixed", "one_task", "switching"}


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("mixed")


@pytest.fixture
def sides(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("mixed_sides")


@pytest.mark.slow
def test_a_tiny_run(bench):
    pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")
    pytest.importorskip("peft", reason="pip install -e '.[parity]' brings peft")
    command = [sys.executable, ROOT / "benchmarks" / "mixed.py", "--shape=tiny", "--rounds=2"]
    sizes = ["--rows=8", "--batch_size=4", "--length=5", "--inputs_length=9", "--targets_length=4"]
    done = subprocess.run(
        [*command, *sizes, "--tasks", "1", "3", "--json"],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "round 2/2, 3 tasks: mixed " in done.stderr
    result = json.loads(done.stdout)
    assert result["setup"]["prompt_bytes"] == 4 * 5 * 16
    assert [part["tasks"] for part in result["tasks"]] == [1, 3]
    for part in result["tasks"]:
        assert set(part["seconds"]) == WAYS
        assert all(len(seconds) == 2 for seconds in part["seconds"].values())
        assert all(share >= 0.9 for share in part["same"].values())
        low, high = part["ratio"]["switching"]["min"], part["ratio"]["switching"]["max"]
        assert 0 < low <= part["ratio"]["switching"]["median"] <= high
    one, three = (part["seconds"]["mixed"] for part in result["tasks"])
    speeds = sorted(a / b for a, b in zip(one, three))
    assert result["tasks"][1]["of_fewest"]["min"] == speeds[0]
    section = bench.to_markdown(result)
    assert "| mixed: of its speed with 1 |" in section and "A prompt more is 320 bytes." in section
    assert f"**{result['tasks'][1]['ratio']['switching']['median']:.2f}**" in section


def test_ways_that_write_other_things_are_not_timed(bench):
    ids = {way: np.zeros((10, 4), int) for way in WAYS}
    ids["switching"][:1] = 7
    assert bench.check_agreement(ids, 4) == {"one_task": 1.0, "switching": 0.9}
    ids["switching"][:2] = 7
    with pytest.raises(bench.SideError, match="with 4 tasks: 'switching' and 'mixed' are equal in"):
        bench.check_agreement(ids, 4)


def test_rows_by_task_are_all_rows_in_the_order_of_arrival(sides):
    groups = sides.by_task(np.array([2, 0, 2, 5, 0], np.int32))
    assert {task: rows.tolist() for task, rows in groups.items()} == {2: [0, 2], 0: [1, 4], 5: [3]}


def test_batches_of_a_task_are_padded_to_a_power_of_2(sides):
    sizes = [sides.padded_size(rows, 32) for rows in (1, 2, 3, 4, 5, 16, 17, 31, 32)]
    assert sizes == [1, 2, 4, 4, 8, 16, 32, 32, 32]


@pytest.mark.parametrize(
    "option, message",
    [
        ("--batch_size=24", "--batch_size is 24, expected a power of 2"),
        ("--rows=40", "--rows is 40, expected a multiple of --batch_size (32)"),
        ("--rounds=0", "--rounds: '0', expected a whole number of 1 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused(bench, capsys, option, message):
    with pytest.raises(SystemExit) as exit_info:
        bench.main([option])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
