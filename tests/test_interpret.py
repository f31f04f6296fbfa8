"""What a prompt means: each measure against a computation of its own, and the page."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from support import tiny

from spt_jax.cli import main as cli
from spt_jax.data.pipeline import tokenize_split
from spt_jax.evaluation import interpret as module
from spt_jax.evaluation.evaluate import evaluate, sample_split
from spt_jax.evaluation.interpret import interpret, leave_one_out, mean_loss, search_words
from spt_jax.evaluation.interpretation import write_interpretation
from spt_jax.forward import forward
from spt_jax.models.backbone import load_backbone
from spt_jax.prompts.file import load_prompt
from spt_jax.prompts.words import embeddings
from spt_jax.run import prepare_runs
from spt_jax.train import fit

logits_of = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and what is found of it."""
    folder = tmp_path_factory.mktemp("interpret")
    config = tiny.train_config(folder)
    fit(config, folder / "run")
    return config, folder / "run", interpret(folder / "run", rows=6, search_steps=4, words=2)


@pytest.fixture(scope="module")
def prepared(run):
    """The model, the prompt, and the rows of dev."""
    config, folder, _ = run
    [prepared] = prepare_runs([config])
    prompt, _ = load_prompt(folder / "prompt.safetensors")
    return prepared, prompt, sample_split(prepared.data.rows["dev"], 6)


def losses_of(backbone, prompt, split):
    """Loss per target token, a row at a time."""
    tree, total, tokens = {"t5": backbone.params, "prompt": prompt}, 0.0, 0
    widths = [max(map(len, part)) for part in (split.inputs, split.targets)]
    for row in zip(split.inputs, split.targets, strict=True):
        # Rows are padded to one shape, because each shape is a program.
        inputs, targets = (
            np.pad(ids, (0, width - len(ids)))[None] for ids, width in zip(row, widths)
        )
        logits = np.asarray(logits_of(backbone.model, tree, inputs, targets))[0, : len(row[1])]
        logits = logits.astype(np.float64)
        norms = np.log(np.exp(logits).sum(-1))
        picked = logits[np.arange(len(row[1])), row[1]] - norms
        total, tokens = total - picked.sum(), tokens + len(picked)
    return total / tokens


def test_scores_are_those_of_the_prompts_alone(run, prepared):
    _, folder, found = run
    prepared, prompt, dev = prepared
    start, _ = load_prompt(folder / "start.safetensors")
    for name, vectors in (("trained", prompt), ("start", start)):
        params = {"t5": prepared.backbone.params, "prompt": jnp.asarray(vectors)}
        alone = evaluate(
            prepared.backbone, params, dev, prepared.config.data,
            label_words=prepared.data.task.label_words, batch_size=8,
        )  # fmt: skip
        values = found["prompts"][name]
        assert (values["score"], values["rank_score"]) == (alone.score, alone.rank_score)
        expected = losses_of(prepared.backbone, vectors, dev)
        assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["rows"] == 6 and found["length"] == 3


def test_a_vector_that_is_left_out_counts_as_if_it_were_not_there(prepared):
    """The first vector has none before it, so that the others keep their distances without it."""
    prepared, prompt, dev = prepared
    found = leave_one_out(prepared.backbone, prompt, dev, prepared.config.data)
    whole = mean_loss(prepared.backbone, prompt, dev, prepared.config.data)
    without = losses_of(prepared.backbone, prompt[1:], dev)
    assert found[0] == pytest.approx(without - whole, abs=1e-5)
    assert found.shape == (3,) and len({*np.round(found, 4)}) > 1


def test_where_a_prompt_is_tells_trained_from_start_and_random(run, prepared):
    _, _, found = run
    prepared, prompt, _ = prepared
    table = embeddings(prepared.backbone)
    size = np.linalg.norm(table, axis=1).mean()
    gaps = np.linalg.norm(prompt[:, None] - table[None], axis=-1).min(1)
    trained, start, random = (found["prompts"][name] for name in ("trained", "start", "random"))
    assert trained["distance"] == pytest.approx(gaps.mean() / size, rel=1e-4)
    norms = np.linalg.norm(prompt, axis=1).mean() / size
    assert trained["norm"] == pytest.approx(norms, rel=1e-5) == random["norm"]
    assert start["start_words"] == 1 and 0 <= trained["start_words"] <= 1
    assert start["cosine"] > random["cosine"]


def test_words_found_by_gradients_do_the_task_better_than_the_nearest(prepared):
    prepared, prompt, _ = prepared
    rows = prepared.data.rows["train"]
    ids = search_words(prepared.backbone, prompt, rows, prepared.config, 12)
    table = embeddings(prepared.backbone)
    assert ids.shape == (3,) and 0 <= ids.min() and ids.max() < len(table)
    nearest = module.nearest(prompt, table, 1)["cosine"][0][:, 0]
    batch = sample_split(rows, 16)
    losses = [
        mean_loss(prepared.backbone, table[words], batch, prepared.config.data)
        for words in (ids, nearest)
    ]
    assert losses[0] < losses[1]


def test_the_decoder_on_all_layers_is_the_whole_model(run, prepared):
    _, _, found = run
    prepared, prompt, _ = prepared
    layers = prepared.backbone.model.config.num_layers
    assert [row["layer"] for row in found["alone"]] == list(range(1, layers + 1))
    eos = np.array([[prepared.backbone.tokenizer.eos_id]])
    params = {"t5": prepared.backbone.params, "prompt": prompt}
    length = prepared.config.data.targets_length
    written = []
    for number in range(length):
        targets = np.array([[*written, *[0] * (length - number)]])
        logits = logits_of(prepared.backbone.model, params, eos, targets)
        written.append(int(np.asarray(logits)[0, number].argmax()))
    text = prepared.backbone.tokenizer.decode(written)
    assert found["alone"][-1]["trained"].strip() == text.strip()


def test_fewer_layers_are_the_first_ones(tmp_path):
    """A model of two layers, cut to one, is the model that has the first of them alone."""
    shape = dataclasses.replace(tiny.SHAPE, num_layers=2)
    backbone = load_backbone(str(tiny.write_backbone(tmp_path)))
    params = tiny.random_params(shape)
    deep = dataclasses.replace(backbone, model=backbone.model.clone(config=shape), params=params)
    first = module._first_layers(deep, 1)
    cut = jax.tree.map(lambda x: x[:1], params["encoder"]["layers"])
    alone = {**params, "encoder": {**params["encoder"], "layers": cut}}
    ids, targets = np.array([[5, 6, 1]]), np.array([[7, 1]])
    expected = logits_of(backbone.model, {"t5": alone}, ids, targets)
    found = logits_of(first.model, {"t5": first.params}, ids, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found, logits_of(deep.model, {"t5": params}, ids, targets), atol=1e-3)


def test_the_plane_keeps_most_of_the_distances(run):
    _, _, found = run
    plane = found["plane"]
    assert list(plane) == ["vocabulary", "trained", "start", "random"]
    points = np.concatenate([np.asarray(points) for points in plane.values()])
    assert points.shape[1] == 2 and np.abs(points.mean(0)).max() < 1e-6
    assert points[:, 0].std() >= points[:, 1].std() > 0


def test_the_page_has_all_that_was_found_and_no_cell_is_broken(run, tmp_path):
    _, _, found = run
    odd = json.loads(json.dumps(found))
    odd["positions"][0]["cosine"][0][0] = "a|b`c\n"
    odd["searched_words"] = "x `|` y"
    files = write_interpretation(odd, tmp_path / "deep" / "page")
    page = (tmp_path / "deep" / "page" / "interpretation.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| 0 |")]
    assert len(rows) == 1 and rows[0].count(" | ") == 4 and "`a¦b'c`" in rows[0]
    for name in found["prompts"]:
        assert f"| {name} |" in page
    assert json.loads((tmp_path / "deep" / "page" / "interpretation.json").read_text()) == odd
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert len(files) == 2 + drawn and ("![vectors" in page) == drawn


def test_the_command_writes_the_page_into_the_run(run, capsys):
    _, folder, _ = run
    argv = ("interpret", str(folder), "--rows=4", "--search_steps=0", "--k=1")
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert (folder / "interpretation" / "interpretation.md").is_file()
    assert out.splitlines()[0].split() == ["prompt", "score", "rank", "loss"]
    assert "words by search" not in out and "measuring the importance of 3 vectors" in err
    assert cli.main((*argv, "--json", "--rows=0")) == 2
    assert "rows is 0, expected 1 or more" in capsys.readouterr().err


def test_a_run_without_a_start_is_interpreted_without_it(run, tmp_path, capsys):
    config, folder, _ = run
    other = tmp_path / "run"
    other.mkdir()
    for name in ("config.yaml", "manifest.json", "prompt.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    found = interpret(other, rows=2, search_steps=0)
    assert "start" not in found["prompts"] and "start" not in found["plane"]
    assert "keeps no start.safetensors, so nothing is compared with its start" in (
        capsys.readouterr().err
    )


def test_a_tuned_model_has_no_prompt_to_interpret(run, tmp_path):
    prompted, folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(prompted.model, tmp_path / "run" / "model")
    file = tmp_path / "run" / "config.yaml"
    config = {**yaml.safe_load(file.read_text()), "tune": "model", "prompt": None}
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(
        ValueError, match="run '.*run' tuned the model; interpret a run of a prompt"
    ):
        interpret(tmp_path / "run")


def test_rows_of_free_text_have_no_rank(run, prepared):
    prepared, prompt, _ = prepared
    task = dataclasses.replace(prepared.data.task, label_words=None)
    split = tokenize_split(
        task.splits["dev"][:2], prepared.backbone.tokenizer, prepared.config.data, free_text=True
    )
    found = module.score_prompts(
        prepared.backbone, {"trained": prompt}, split, task, prepared.config
    )
    assert found["trained"]["rank_score"] is None
