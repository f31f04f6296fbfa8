"""The benchmark of static batches runs, and its bound is what its docstring says."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("static_batches")
    for name in ("static_batches", "serve", "step", "decode", "command"):
        sys.modules.pop(name, None)


def test_the_bound_is_the_ratio_of_the_two_sums(script):
    a, b = script.fit_line([1, 3, 7], [2.5, 3.5, 5.5])
    assert (a, b) == pytest.approx((2.0, 0.5))
    # Two batches of two rows, of 4 and 2 steps, against means of 3 and 2 steps.
    assert script.bound(a, b, np.array([[2, 4], [2, 2]])) == pytest.approx((4 + 3) / (3.5 + 3))


def test_a_tiny_run(script, tmp_path, capsys):
    pytest.importorskip("torch", reason="the line of the machine names its version")
    line = ["--json", "--model", str(tiny.write_backbone(tmp_path)), "--prompts=2", "--length=4"]
    line += ["--words=6", "--batch_size=4", "--batches=2", "--lengths", "1", "5"]
    assert script.main(line) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["batches"]) == 4 and {steps for steps, _ in result["batches"]} <= {
        1,
        2,
        3,
        4,
        5,
    }
    assert all(factor > 0 for factor in result["bounds"].values())
