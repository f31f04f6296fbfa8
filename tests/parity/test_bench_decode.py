"""The benchmark of decoding runs, its sides write the same, and its output says what it must."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("decode")


@pytest.mark.slow
def test_a_tiny_run(bench):
    pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")
    command = [sys.executable, ROOT / "benchmarks" / "decode.py", "--shapes=tiny", "--pairs=1"]
    sizes = ["--batch_sizes", "1", "3", "--inputs_length=9", "--targets_length=11", "--json"]
    done = subprocess.run(
        [*command, *sizes], env={**os.environ}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "tiny, batch 3, 4 beams: " in done.stderr
    result = json.loads(done.stdout)
    assert {"jax", "torch", "transformers"} <= set(result["machine"]["versions"])
    (shape,) = result["shapes"]
    assert shape["torch"]["threads"] >= 1 and shape["parameters"] > 0
    settings = [(setting["batch_size"], setting["beams"]) for setting in shape["settings"]]
    assert settings == [(1, 1), (1, 4), (3, 1), (3, 4)]
    for setting in shape["settings"]:
        assert setting["same_answers"] > 0.5  # of as many tokens as asked for, or it is refused
        assert {len(seconds) for seconds in setting["seconds"].values()} == {1}
        theirs, ours = (setting["seconds"][side][0] for side in ("torch", "spt_jax"))
        assert setting["ratio"]["median"] == theirs / ours
        assert setting["products_share"] > 0
    section = bench.to_markdown(result)
    assert section.count("| tiny, 0M |") == 4
    assert f"**{shape['settings'][3]['ratio']['median']:.2f}**" in section


@pytest.mark.parametrize(
    "theirs, message",
    [
        (np.ones((4, 9), int), "2 beams: the first 8 tokens are equal in 1 of 4 rows"),
        (np.ones((4, 7), int), r"2 beams: \[4, 9\] ids in spt_jax and \[4, 7\] in torch"),
    ],
)
def test_sides_that_write_other_things_are_not_timed(bench, theirs, message):
    ours = np.ones((4, 9), int)
    ours[1:, 5] = 2
    with pytest.raises(bench.SideError, match=f"do not write the same for {message}"):
        bench.check_agreement({"spt_jax": ours, "torch": theirs}, "2 beams")


def test_a_tie_late_in_an_answer_is_counted_and_no_error(bench):
    ours = np.ones((4, 9), int)
    theirs = ours.copy()
    theirs[0, 8] = 2
    assert bench.check_agreement({"spt_jax": ours, "torch": theirs}, "greedy") == 0.75


class Side:
    """Takes as many seconds as it is told; a clock that all sides share shows them."""

    now = 0.0

    def __init__(self, seconds: float):
        self._seconds = seconds

    def ask(self, name, *args):
        if name == "products":
            return 0.5 * self._seconds
        Side.now += self._seconds
        return {"seconds": self._seconds, "processor_seconds": self._seconds, "ids": args[0]}


def test_slow_settings_have_three_pairs_and_quick_ones_all(bench, monkeypatch):
    monkeypatch.setattr(bench.time, "perf_counter", lambda: Side.now)
    job, inputs = {"pairs": 5, "seconds": 60}, np.ones((1, 9), int)
    for seconds, pairs in ((1.0, 5), (25.0, 3), (1000.0, 3)):
        sides = {"spt_jax": Side(seconds), "torch": Side(2 * seconds)}
        setting = bench.time_setting(sides, inputs, 1, job, "greedy")
        assert len(setting["seconds"]["torch"]) == pairs
        assert setting["ratio"] == {"median": 2, "min": 2, "max": 2}
        assert setting["products_share"] == 0.5


def test_without_torch_it_names_the_extra(bench, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.main(["--shapes=tiny"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == (
        "benchmarks/decode.py compares with transformers, "
        "but torch and transformers cannot be imported; "
        'pip install -e ".[parity]" brings both\n'
    )
