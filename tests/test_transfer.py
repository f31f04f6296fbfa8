"""Trained prompts together: similarity, sums of what they learned, and another model."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from support import tiny
from support.runs import random_prompt, write_run

from spt_jax.cli import main as cli
from spt_jax.models.backbone import load_backbone, save_backbone
from spt_jax.prompts import transfer
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.prompts.read import read_prompt
from spt_jax.prompts.transfer import combine, recycle, similarity
from spt_jax.prompts.words import embeddings
from spt_jax.train import fit

START = random_prompt(3, 9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs a, b and c from one start; d from another; e of earlier versions, without a start."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.train_config(folder)
    for number, name in enumerate("abcde"):
        write_run(folder / name, config, random_prompt(3, number))
        if name != "e":
            start = START if name != "d" else START + 1
            _, metadata = load_prompt(folder / name / "prompt.safetensors")
            save_prompt(folder / name / "start.safetensors", start, metadata)
    return {name: folder / name for name in "abcde"}


def prompt_of(run):
    return read_prompt(run).prompt.astype(np.float64)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_similarities_are_those_of_the_paper(runs):
    found = similarity(list(runs.values()))
    prompts = [prompt_of(run) for run in runs.values()]
    for i, a in enumerate(prompts):
        for j, b in enumerate(prompts):
            mean, pairs = (
                cosine(a.mean(0), b.mean(0)),
                np.mean([cosine(x, y) for x in a for y in b]),
            )
            assert found["mean_cosine"][i][j] == pytest.approx(mean, abs=1e-9)
            assert found["pair_cosine"][i][j] == pytest.approx(pairs, abs=1e-9)
    assert found["sources"] == [str(run) for run in runs.values()]


def test_the_order_of_the_vectors_and_the_length_do_not_count(runs, tmp_path):
    prompt, metadata = load_prompt(runs["a"] / "prompt.safetensors")
    twice = np.concatenate([prompt[::-1], prompt])
    save_prompt(tmp_path / "twice.safetensors", twice, metadata)
    found = similarity([runs["b"], runs["a"]], to=tmp_path / "twice.safetensors")
    first, second = found["nearest"]
    assert (first["source"], first["task"]) == (str(runs["a"]), metadata.get("task"))
    assert first["mean_cosine"] == pytest.approx(1) and second["mean_cosine"] < 0.9


def test_what_runs_learned_is_added_to_their_start(runs, tmp_path):
    parts = {str(runs["a"]): 0.5, str(runs["b"]): -1.0}
    result = combine(parts, tmp_path / "sum.safetensors")
    a, b = prompt_of(runs["a"]), prompt_of(runs["b"])
    expected = START + 0.5 * (a - START) - (b - START)
    found, metadata = load_prompt(tmp_path / "sum.safetensors")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert metadata["model"] == "tiny-0" and "task" not in metadata
    assert result["combined"] == f"+0.5*{runs['a']} -1*{runs['b']}"


def test_runs_of_different_starts_need_a_start(runs, tmp_path):
    parts = {str(runs["a"]): 1.0, str(runs["d"]): 1.0}
    with pytest.raises(ValueError, match="run '.*/d' started from another prompt than '.*/a'; n"):
        combine(parts, tmp_path / "x.safetensors")
    combine(parts, tmp_path / "x.safetensors", start=runs["d"] / "start.safetensors")
    a, d = prompt_of(runs["a"]), prompt_of(runs["d"])
    expected = START + 1 + (a - START) + (d - START - 1)
    found = read_prompt(tmp_path / "x.safetensors").prompt
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_run_that_was_trained_keeps_its_start(tmp_path):
    """One run with weight 1 is itself, and with weight 0 its start."""
    config = tiny.train_config(tmp_path)
    fit(dataclasses.replace(config, steps=4), tmp_path / "run")
    for weight, name in ((1.0, "prompt"), (0.0, "start")):
        dest = tmp_path / f"{weight}.safetensors"
        combine({str(tmp_path / "run"): weight}, dest)
        expected, _ = load_prompt(tmp_path / "run" / f"{name}.safetensors")
        np.testing.assert_allclose(read_prompt(dest).prompt, expected, atol=1e-6)
    start, trained = (read_prompt(tmp_path / f"{w}.safetensors").prompt for w in (0.0, 1.0))
    assert np.abs(start - trained).max() > 0.1


def test_a_prompt_is_recycled_by_the_map_of_the_embeddings(runs, tmp_path):
    path = str(tiny.write_backbone(tmp_path / "old"))
    old = load_backbone(path)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]
    params = jax.tree.map(np.asarray, old.params)
    table = params["token_embedder"]["embedding"]
    params["token_embedder"] = {"embedding": (table @ turn).astype(np.float32)}
    shape, tokenizer = old.model.config, old.tokenizer
    save_backbone(tmp_path / "new", "turned", shape, params, tokenizer, dtype="float32")
    dest = tmp_path / "new.safetensors"
    result = recycle(runs["a"], dest, old=path, new=str(tmp_path / "new"))
    found, metadata = load_prompt(dest)
    np.testing.assert_allclose(found, prompt_of(runs["a"]) @ turn, atol=1e-5)
    assert result["anchors"] == len(embeddings(old)) and result["unexplained"] < 1e-9
    new = load_backbone(str(tmp_path / "new"))
    assert metadata["fingerprint"] == new.fingerprint and metadata["recycled_from"] == "tiny-0"
    read_prompt(dest).require_backbone(new)


def test_what_cannot_be_combined_is_said(runs, tmp_path, monkeypatch):
    other = tiny.write_backbone(tmp_path / "other", seed=5)
    fingerprint = load_backbone(str(other)).fingerprint
    save_prompt(
        tmp_path / "other.safetensors", START, {"model": "tiny-5", "fingerprint": fingerprint}
    )
    save_prompt(tmp_path / "wide.safetensors", np.ones((3, 32), np.float32), {})
    save_prompt(tmp_path / "long.safetensors", np.ones((5, 16), np.float32), {})
    a, e, dest = runs["a"], runs["e"], tmp_path / "x.safetensors"
    for call, error, message in (
        (lambda: similarity([a]), ValueError, "1 prompts are given, expected 2 or more"),
        (
            lambda: similarity([a, tmp_path / "other.safetensors"]),
            ValueError,
            "other.safetensors was trained on model 'tiny-5' with .* but 'tiny-0' has",
        ),
        (
            lambda: similarity([a, tmp_path / "wide.safetensors"]),
            ValueError,
            "wide.safetensors has d_model 32 but 'tiny-0' has 16",
        ),
        (
            lambda: combine({str(e): 1.0}, dest),
            FileNotFoundError,
            "'.*/e' keeps no start: expected start.safetensors in it, which a run writes at it",
        ),
        (
            lambda: combine({str(a): 1.0}, dest, start=tmp_path / "long.safetensors"),
            ValueError,
            "prompt .*/a/prompt.safetensors has 3 vectors but the start .* has 5; combine prompts",
        ),
        (lambda: combine({}, dest), ValueError, "no run is given"),
        (
            lambda: combine({str(a): 0.5, f"{a.parent}/./a": 0.5}, dest),
            ValueError,
            r"run '.*/\./a' is given twice; give it once, with the sum of the weights",
        ),
        (
            lambda: combine({str(a): 1e300}, dest),
            ValueError,
            r"the sum has values up to \S+, expected at most 3.4e38, the largest float32; give sm",
        ),
        (lambda: combine({str(a): 1.0}, a), FileExistsError, "a exists; name a new place"),
        (
            lambda: recycle(a, dest, old=str(other), new=str(other)),
            ValueError,
            "was trained on model 'tiny-0' with .* but 'tiny-5' has",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    tiny_model = str(a.parent / "tiny")
    monkeypatch.setattr(transfer, "_anchors", lambda old, new: np.zeros((16, 2), int))
    with pytest.raises(
        ValueError, match="have 16 tokens in common, expected more than 16, the wid"
    ):
        recycle(a, dest, old=tiny_model, new=tiny_model)
    assert not dest.exists()


def run_command(capsys, *argv):
    code = cli.main(("prompt", *map(str, argv)))
    return (code, *capsys.readouterr())


def test_the_commands(runs, tmp_path, capsys):
    a, b = runs["a"], runs["b"]
    code, out, _ = run_command(capsys, "similarity", a, b)
    assert code == 0 and "cosine of the mean vectors" in out and out.count("1.000") >= 2
    code, out, _ = run_command(capsys, "similarity", b, "--to", a)
    assert code == 0 and str(b) in out and "mean cosine of pairs" in out
    code, out, _ = run_command(capsys, "combine", tmp_path / "c.safetensors", f"{a}=0.25", b)
    assert code == 0 and "+0.25*" in out
    expected = START + 0.25 * (prompt_of(a) - START) + (prompt_of(b) - START)
    found = read_prompt(tmp_path / "c.safetensors").prompt
    np.testing.assert_allclose(found, expected, atol=1e-6)
    named = shutil.copytree(a, tmp_path / "seed=7")  # as sweep names its runs
    assert run_command(capsys, "combine", tmp_path / "n.safetensors", named)[0] == 0
    found = read_prompt(tmp_path / "n.safetensors").prompt
    np.testing.assert_allclose(found, prompt_of(a), atol=1e-6)
    for argv, message in (
        (("combine", tmp_path / "d", f"{a}=x"), f"the weight of '{a}' is 'x', expected a number"),
        (("combine", tmp_path / "d", a, a), "a run is given twice; give it once, with the sum of"),
        (("recycle", a, tmp_path / "d"), "--old is not given, expected a model as --model takes"),
    ):
        code, _, err = run_command(capsys, *argv)
        assert code == 2 and message in err
