"""The benchmark of the step runs, its sides agree, and its output says what it must."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SIDES = {"spt_jax", "peft"}


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("step")


@pytest.fixture
def bench_sides(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("step_sides")


def write_sst2(folder: Path) -> Path:
    """Eight rows in GLUE's form, of one to eight words."""
    (folder / "sst2").mkdir()
    words = "a film that nobody should ever miss again".split()
    lines = [f"{' '.join(words[: n + 1])} \t{n % 2}" for n in range(8)]
    (folder / "sst2" / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


@pytest.mark.slow
def test_a_tiny_run(tmp_path, bench):
    pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")
    pytest.importorskip("peft", reason="pip install -e '.[parity]' brings peft")
    command = [sys.executable, ROOT / "benchmarks" / "step.py", "--shape=tiny", "--pairs=1"]
    sizes = ["--batch_size=4", "--length=5", "--inputs_length=16", "--targets_length=2"]
    environment = {**os.environ, "SPT_JAX_DATA": str(write_sst2(tmp_path))}
    done = subprocess.run(
        [*command, *sizes, "--json"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "equal shapes 1/1" in done.stderr and "group_by_length on 1/1" in done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {
        "command", "machine", "setup", "equal_shapes", "natural_lengths", "memory_mib"
    }  # fmt: skip
    assert {"cpu", "cores", "memory_gib", "date", "versions"} <= set(result["machine"])
    assert {"jax", "torch", "peft"} <= set(result["machine"]["versions"])
    assert result["setup"]["length"] == 5 and result["setup"]["dropout_rate"] == 0

    equal, natural = result["equal_shapes"], result["natural_lengths"]
    ours, theirs = (equal["agreement"]["loss"][side] for side in ("spt_jax", "peft"))
    assert ours == pytest.approx(theirs, rel=1e-5) and 4 < ours < 9  # near ln of the vocabulary
    assert equal["agreement"]["grad_norm"]["relative_difference"] < 1e-4
    assert natural["rows"]["origin"].startswith("SST-2") and natural["rows"]["max_length"] == 9
    for part in (equal, natural["plain"], natural["grouped"]):
        assert set(part["seconds"]) == SIDES
        assert 0 < part["ratio"]["min"] <= part["ratio"]["median"] <= part["ratio"]["max"]
    # The same rows: ours padded to the bucket of 12, theirs to the longest of 4 rows.
    assert natural["plain"]["mean_padded_length"]["spt_jax"] == 12
    assert 5 <= natural["plain"]["mean_padded_length"]["peft"] <= 9
    for side in SIDES:
        assert 0 < equal["optimizer_share"][side] < 1
        assert 0 < result["memory_mib"][side]["loaded"] <= result["memory_mib"][side]["peak"]

    section = bench.to_markdown(result)
    assert section.startswith("## ") and "1 token" not in section
    for part in (equal, natural["plain"], natural["grouped"]):
        assert f"**{part['ratio']['median']:.2f}**" in section


def test_rows_of_the_real_vocabulary(data_dir, bench_sides):
    pieces = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    rows, origin = bench_sides.read_rows(str(data_dir), 32128)
    assert origin == "SST-2, T5's own vocabulary" and len(rows) > 60_000
    inputs, targets = rows[0]
    model = pieces.SentencePieceProcessor(model_file=str(data_dir / "t5" / "spiece.model"))
    assert model.decode(inputs[:-1]) == "when are bears bears and" and inputs[-1] == 1
    assert model.decode(targets[:-1]) == "positive" and targets[-1] == 1


@pytest.mark.parametrize("vocab_size", [50, 32128])
def test_rows_of_words_and_made_up_rows(tmp_path, bench_sides, vocab_size):
    by_words, origin = bench_sides.read_rows(str(write_sst2(tmp_path)), vocab_size)
    assert "one id a word" in origin
    assert [len(inputs) for inputs, _ in by_words] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert by_words[3][0][:4] == by_words[7][0][:4]  # the same words are the same ids
    made_up, origin = bench_sides.read_rows(None, vocab_size)
    assert "made-up" in origin and made_up == bench_sides.read_rows(None, vocab_size)[0]
    assert 8 < np.mean([len(inputs) for inputs, _ in made_up]) < 20
    for inputs, targets in [*by_words, *made_up]:
        for ids in (inputs, targets):
            assert ids[-1] == 1 and all(2 <= i < vocab_size for i in ids[:-1])


def test_rows_are_padded_to_the_longest(bench_sides):
    batch = bench_sides.collate([([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 9, 1])])
    assert batch["inputs"].tolist() == [[5, 6, 1], [8, 1, 0]]
    assert batch["targets"].tolist() == [[7, 1, 0, 0], [9, 9, 9, 1]]


class Side:
    """Answers every step alike."""

    def __init__(self, loss: float, grad_norm: float):
        self._step = {"seconds": 1.0, "loss": loss, "grad_norm": grad_norm}

    def ask(self, name, *args):
        return self._step


@pytest.mark.parametrize(
    "theirs, message",
    [
        ((2.5, 3.0), "loss is 2 in spt_jax and 2.5 in PEFT, a relative difference of 2.0e-01"),
        ((2.0, float("nan")), "grad_norm is 3 in spt_jax and nan in PEFT"),
        ((2.0, 0.0), "grad_norm is 3 in spt_jax and 0 in PEFT"),
    ],
)
def test_sides_that_differ_are_not_timed(bench, theirs, message):
    sides = {"spt_jax": Side(2.0, 3.0), "peft": Side(*theirs)}
    with pytest.raises(bench.SideError, match=f"do not compute the same: {message}"):
        bench.check_agreement(sides, {})


def test_a_failed_side_is_one_line_and_code_1(bench, monkeypatch, capsys):
    class Pipe:
        def recv(self):
            return "error", "MemoryError: no room"

    def measure(job, command):
        child = object.__new__(bench.Child)
        child._role, child._connection = "peft", Pipe()
        return child.answer()

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert bench.main([]) == 1
    assert capsys.readouterr().err == "the child 'peft' failed: MemoryError: no room\n"


def test_without_torch_it_names_the_extra(bench, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.main(["--shape=tiny"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == (
        "benchmarks/step.py compares with PEFT, but torch and peft cannot be imported; "
        'pip install -e ".[parity]" brings both\n'
    )


def test_an_option_below_1_is_refused(bench, capsys):
    with pytest.raises(SystemExit) as exit_info:
        bench.main(["--pairs=0"])
    assert exit_info.value.code == 2
    assert "--pairs: '0', expected a whole number of 1 or more" in capsys.readouterr().err
