"""The benchmark of the server runs, and both sides write the same answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_tiny_run(tmp_path):
    for package in ("torch", "peft", "fastapi"):
        pytest.importorskip(package, reason="pip install -e '.[parity,serve]' brings it")
    command = [sys.executable, str(BENCHMARKS / "serve.py"), "--json", "--peft"]
    command += ["--model", str(tiny.write_backbone(tmp_path)), "--rows=40", "--clients=4"]
    command += ["--prompts=3", "--length=4", "--words=6", "--targets_length=4", "--batch_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answers"] == result["compared"] == 40
    assert result["wrong"] == result["compilations"] == result["exit_code"] == 0
    assert result["others"] == result["peft"]["others"] == {}
    assert result["peft"]["same"] >= 0.9  # rounding breaks a tie now and then
