"""A text that pulls a prompt, and a written prompt as a baseline."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from test_together import LOSS, make_runs, update_together

from spt_jax.config.train import EvalConfig, OptimizerConfig, PromptConfig, WaywardConfig
from spt_jax.evaluation.evaluate import evaluate, sample_split
from spt_jax.forward import forward
from spt_jax.models.backbone import load_backbone
from spt_jax.optim import make_tx
from spt_jax.prompts.file import load_prompt
from spt_jax.prompts.init import embed_text, init_prompt
from spt_jax.prompts.wayward import Pull, compare_words, make_pull
from spt_jax.prompts.words import embeddings
from spt_jax.run import prepare_runs
from spt_jax.step import jit_step
from spt_jax.train import fit, fit_together
from spt_jax.train_state import init_state

TEXT = "the owl meets"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(str(tiny.write_backbone(tmp_path_factory.mktemp("tiny"))))


def pull_of(kind, gamma, dtype=jnp.float64, rows=2):
    text = jnp.asarray(np.random.default_rng(5).standard_normal((rows, 16)), dtype)
    return Pull(text, jnp.asarray(4.0, dtype), jnp.asarray(gamma, dtype), kind)


def by_hand(kind, prompt, pull):
    prompt, text = np.asarray(prompt)[: len(pull.text)], np.asarray(pull.text)
    if kind == "l2":
        return np.mean(((prompt - text) ** 2).sum(1)) / 4
    cosine = (prompt * text).sum(1) / np.linalg.norm(prompt, axis=1) / np.linalg.norm(text, axis=1)
    return np.mean(1 - cosine)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_the_term_of_a_text_is_what_the_formula_says(kind, reduction):
    """The gradient is that of the formula by finite differences, once a token of a summed loss."""
    with jax.enable_x64(True):
        model, [run] = make_runs(1)
        pull, batch = pull_of(kind, 0.7), run.batch(0)
        loss = dataclasses.replace(LOSS, reduction=reduction)
        tx = make_tx(OptimizerConfig(name="sgd", learning_rate=1.0), 10, "prompt")
        start = np.asarray(run.state.trained["prompt"])
        moved = []
        for given in (None, pull):
            trained = jax.tree.map(jnp.copy, run.state.trained)
            state = init_state(trained, tx, patience=None, keep_best=False)
            step = jit_step(model, tx, loss)
            after, metrics = step(state, run.frozen, batch, run.key, given)
            moved.append(np.asarray(after.trained["prompt"]) - start)
        update = moved[0] - moved[1]  # the gradient of the term alone
        assert np.isclose(metrics["text_distance"], by_hand(kind, start, pull), rtol=1e-12)
        tokens = np.sum(np.asarray(batch["targets"]) > 0) if reduction == "sum" else 1
        expected = np.zeros_like(start)
        for place in np.ndindex(start.shape):
            change = np.zeros_like(start)
            change[place] = 1e-5
            upper, lower = (by_hand(kind, start + sign * change, pull) for sign in (1, -1))
            expected[place] = 0.7 * tokens * (upper - lower) / 2e-5
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-8)
        assert np.any(expected[:2]) and not np.any(expected[2:])


@pytest.mark.slow
def test_prompts_that_train_together_are_pulled_as_alone():
    with jax.enable_x64(True):
        model, runs = make_runs(3)
        pulls = (pull_of("l2", 0.5), None, pull_of("cosine", 2.0, rows=4))
        update = update_together(model, runs, pulls=pulls)
        states = [jax.tree.map(jnp.copy, run.state) for run in runs]
        states, metrics = update(states, 0)
        for run, pull, found, of_step in zip(runs, pulls, states, metrics):
            state = jax.tree.map(jnp.copy, run.state)
            expected = jit_step(model, run.tx, LOSS)(state, run.frozen, run.batch(0), run.key, pull)
            assert ("text_distance" in of_step) == (pull is not None)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
                (found, of_step),
                expected,
            )


def test_the_distance_is_relative_to_the_vocabulary(backbone):
    """A model whose embeddings are ten times as large has the same distances."""
    table = embeddings(backbone)
    config = WaywardConfig(text=TEXT, gamma=0.5)
    pull, prompt = make_pull(config, 9, backbone), jnp.asarray(table[20:29])
    params = jax.tree.map(lambda x: x, backbone.params)
    params["token_embedder"] = {"embedding": 10 * backbone.params["token_embedder"]["embedding"]}
    larger = make_pull(config, 9, dataclasses.replace(backbone, params=params))
    np.testing.assert_allclose(larger.distance(10 * prompt), pull.distance(prompt), rtol=1e-5)
    ids = backbone.tokenizer.encode(TEXT)
    assert pull.distance(jnp.asarray(table[ids])) == 0


def test_words_are_compared_with_those_of_the_text(backbone):
    ids, table = backbone.tokenizer.encode(TEXT), embeddings(backbone)
    exact = compare_words(table[ids], ids, backbone)
    assert exact["projection"].strip() == TEXT and exact["token_accuracy"] == 100
    gaps = np.linalg.norm(table[ids][:, None] - table[None], axis=-1)
    gaps[np.arange(len(ids)), ids] = np.inf
    size = np.linalg.norm(table, axis=1).mean()
    assert exact["margin"] == pytest.approx(gaps.min(1).mean() / size, rel=1e-4)
    other = [*ids[:-1], ids[-1] + 1]
    moved = compare_words(table[other], ids, backbone)
    assert moved["token_accuracy"] == pytest.approx(100 * (len(ids) - 1) / len(ids))
    assert moved["margin"] < exact["margin"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs together: one that a text pulls hard, and one with gamma 0."""
    folder = tmp_path_factory.mktemp("wayward")
    configs = [
        tiny.train_config(
            folder,
            prompt=PromptConfig(
                length=9, init="sampled_vocab", wayward=WaywardConfig(text=TEXT, gamma=gamma)
            ),
            eval=EvalConfig(every=4, batch_size=8, hard_prompt="is it an animal"),
            steps=24,
        )
        for gamma in (10.0, 0.0)
    ]
    places = [folder / "pulled", folder / "free"]
    return configs, places, fit_together(configs, places)


def test_gamma_changes_the_result(runs):
    _, places, (pulled, free) = runs
    assert pulled["wayward"]["distance"] < 0.5 * free["wayward"]["distance"]
    assert pulled["wayward"]["token_accuracy"] > free["wayward"]["token_accuracy"]
    assert pulled["wayward"]["prompt_f1"] >= 50 > free["wayward"]["prompt_f1"]
    lines = [json.loads(line) for line in (places[0] / "log.jsonl").read_text().splitlines()]
    distances = [line["text_distance"] for line in lines if "text_distance" in line]
    assert len(distances) == 24 and distances[-1] < distances[0]
    assert pulled["wayward"]["projection"]


def test_a_written_prompt_is_scored_beside_the_trained_one(runs):
    configs, _, results = runs
    [run] = prepare_runs(configs[:1])
    prompt = embed_text("is it an animal", run.backbone)
    params = {"t5": run.backbone.params, "prompt": prompt}
    split = sample_split(run.data.rows["test"], None)
    words = run.data.task.label_words
    expected = evaluate(
        run.backbone, params, split, run.config.data, label_words=words, batch_size=8
    )
    for result in results:
        assert result["hard_prompt_score"] == expected.score
        assert result["hard_prompt_rank_score"] == expected.rank_score


def test_a_written_prompt_is_the_text_in_front_of_the_input(backbone):
    """The tokens before the input's own, with the same distances between all of them."""
    ids = backbone.tokenizer.encode("is it") + backbone.tokenizer.encode("the cat")
    targets = jnp.asarray([[5, 6]])
    params = {"t5": backbone.params}
    whole = forward(backbone.model, params, jnp.asarray([ids]), targets)
    prompted = {**params, "prompt": embed_text("is it", backbone)}
    inputs = jnp.asarray([backbone.tokenizer.encode("the cat")])
    np.testing.assert_allclose(
        forward(backbone.model, prompted, inputs, targets), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_a_run_alone_is_pulled_too(runs, tmp_path):
    configs, places, results = runs
    result = fit(configs[0], tmp_path / "alone")
    found, _ = load_prompt(tmp_path / "alone" / "prompt.safetensors")
    expected, _ = load_prompt(places[0] / "prompt.safetensors")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert result["wayward"]["prompt_f1"] == results[0]["wayward"]["prompt_f1"]


def test_bad_texts_are_refused(tmp_path, backbone):
    with pytest.raises(
        ValueError, match="prompt.wayward.text is empty, expected the text that the"
    ):
        WaywardConfig(text=" ")
    long = WaywardConfig(text="the cat likes the garden and the owl")
    count = len(backbone.tokenizer.encode(long.text))
    message = f"prompt.wayward.text has {count} tokens but the prompt has 3 vectors; set prompt.len"
    with pytest.raises(ValueError, match=message):
        make_pull(long, 3, backbone)
    config = tiny.train_config(tmp_path, eval=EvalConfig(every=4, hard_prompt=""))
    with pytest.raises(ValueError, match="eval.hard_prompt '' has no tokens; give some words"):
        fit(config, tmp_path / "run")
    unknown = "the \u2603"
    message = "'the \u2603' has characters that the tokenizer does not know; give other words"
    with pytest.raises(ValueError, match=f"prompt.wayward.text {message}"):
        make_pull(WaywardConfig(text=unknown), 20, backbone)
    with pytest.raises(ValueError, match=f"eval.hard_prompt {message}"):
        embed_text(unknown, backbone)
    start = PromptConfig(length=20, init="text", text=unknown)
    with pytest.raises(ValueError, match=f"prompt.text {message}"):
        init_prompt(start, jax.random.key(0), backbone, None)
