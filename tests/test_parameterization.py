"""Parameterizations: what is trained instead of the prompt, and folds into it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.test_util import check_grads
from support import tiny
from test_together import LOSS, Alone, update_together

from spt_jax.config.train import OptimizerConfig, PromptConfig
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.forward import forward
from spt_jax.models.backbone import load_backbone
from spt_jax.optim import make_optimizer, make_tx
from spt_jax.prediction.run import predict_run
from spt_jax.prompts.file import load_prompt
from spt_jax.prompts.init import init_prompt
from spt_jax.prompts.parameterization import (
    fold_params,
    materialize,
    parameterize,
    random_projection,
)
from spt_jax.pytree import count_params, label_params, split
from spt_jax.step import jit_step
from spt_jax.t5 import T5
from spt_jax.train import fit, fit_together
from spt_jax.train_state import init_state

NAMES = ("residual", "superposition", "low_rank", "projection")
TABLE = 3 * jax.random.normal(jax.random.key(0), (300, 16))
START = TABLE[7:12]


def prompt_config(name, **options):
    return PromptConfig(length=5, parameterization=name, **options)


def make_leaves(name, start=START, seed=1, **options):
    return parameterize(prompt_config(name, **options), jax.random.key(seed), start, TABLE)


def moved(leaves, seed=2):
    """The leaves after a random change, as training changes them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(x.dtype), leaves)


def test_a_direct_prompt_is_its_own_leaf():
    assert make_leaves("direct") is START and materialize(START) is START
    assert fold_params({"t5": None}) == {"t5": None}


def by_the_papers(name, leaves):
    """The prompt of some leaves in numpy, as the papers write it."""
    leaves = {**leaves[name]["vectors"], **leaves[name]["factors"]}
    x = {key: np.asarray(leaf, np.float64) for key, leaf in leaves.items()}
    if name == "residual":
        hidden = np.maximum(x["prompt"] @ x["down"], 0) @ x["up"]
        mean = hidden.mean(1, keepdims=True)
        deviation = np.sqrt(((hidden - mean) ** 2).mean(1, keepdims=True) + 1e-5)
        return x["prompt"] + (hidden - mean) / deviation * x["scale"] + x["bias"]
    if name == "superposition":
        return np.einsum("pr,rd->pd", x["weights"], x["rows"])
    if name == "low_rank":
        return np.einsum("pr,rd->pd", x["left"], x["basis"])
    return x["codes"] @ random_projection(64, 16) @ np.diag(x["scale"][0]) + x["shift"]


@pytest.mark.parametrize("name", NAMES)
def test_leaves_fold_as_the_paper_says_and_their_gradient_is_right(name):
    leaves = moved(make_leaves(name))
    folded = materialize(leaves)
    assert folded.shape == (5, 16) and folded.dtype == jnp.float32
    np.testing.assert_allclose(folded, by_the_papers(name, leaves), rtol=2e-5, atol=2e-5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), leaves)
        check_grads(materialize, (wide,), order=1, modes="rev", atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES[1:])
def test_training_starts_at_the_prompt_that_init_chooses(name):
    leaves = make_leaves(name)
    np.testing.assert_allclose(materialize(leaves), START, atol=1e-5)


def test_a_low_rank_starts_at_the_nearest_matrix_of_its_rank():
    found = np.asarray(materialize(make_leaves("low_rank", rank=2)))
    sizes = np.linalg.svd(START, compute_uv=False)
    assert np.linalg.matrix_rank(found, tol=1e-4) == 2
    np.testing.assert_allclose(
        np.linalg.norm(found - START) ** 2, np.sum(sizes[2:] ** 2), rtol=1e-4
    )


def test_a_superposition_mixes_embeddings_of_the_vocabulary():
    rows = make_leaves("superposition", rank=9)["superposition"]["vectors"]["rows"]
    np.testing.assert_array_equal(rows[:5], START)
    assert all(np.any(np.all(np.asarray(TABLE) == row[None], axis=1)) for row in np.asarray(rows))


def test_the_fixed_matrix_is_the_same_in_every_release():
    # Numbers of numpy's RandomState(0), which numpy keeps for ever.
    expected = np.array([1.7640524, 0.4001572, 0.978738]) / np.sqrt(2)
    np.testing.assert_allclose(random_projection(2, 3)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_a_vector_leaf_changes_the_prompt_by_as_much(name):
    """So the learning rate of a direct prompt fits; for factors it would not."""
    leaves = make_leaves(name)
    rng = np.random.default_rng(3)
    if name == "residual":  # of the vectors alone, the network passes more
        leaves["residual"]["factors"]["scale"] *= 0
    before = materialize(leaves)
    for leaf, values in leaves[name]["vectors"].items():
        change = 0.01 * rng.choice([-1, 1], values.shape)
        vectors = {**leaves[name]["vectors"], leaf: values + change}
        after = materialize({name: {**leaves[name], "vectors": vectors}})
        size = float(jnp.sqrt(jnp.mean((after - before) ** 2)))
        assert 0.005 < size < 0.02, (leaf, size)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "lion", "sgd"])
def test_factors_have_their_own_rate_and_do_not_decay(optimizer):
    decay = {} if optimizer == "sgd" else {"weight_decay": 0.1}
    config = OptimizerConfig(name=optimizer, learning_rate=0.5, factor_rate=0.125, **decay)
    params = {"prompt": moved(make_leaves("superposition", rank=6))}
    grads = {"prompt": moved(jax.tree.map(jnp.zeros_like, params["prompt"]), seed=4)}
    leaves = {key: jax.tree.leaves(params["prompt"]["superposition"][key])[0] for key in PARTS}
    gradient = {key: jax.tree.leaves(grads["prompt"]["superposition"][key])[0] for key in PARTS}
    plain = dataclasses.replace(config, **dict.fromkeys(decay, 0.0))
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    found = updates["prompt"]["superposition"]
    for part, settings, factor in (("vectors", config, 1), ("factors", plain, 0.125)):
        alone = make_optimizer(settings, 10)
        tree = {"prompt": leaves[part]}
        expected, _ = alone.update({"prompt": gradient[part]}, alone.init(tree), tree)
        [update] = found[part].values()
        np.testing.assert_allclose(update, factor * expected["prompt"], rtol=1e-6)


PARTS = ("vectors", "factors")


@pytest.mark.parametrize(("name", "make"), [("adamw", optax.adamw), ("lion", optax.lion)])
def test_a_direct_prompt_is_updated_as_optax_does(name, make):
    config = OptimizerConfig(name=name, weight_decay=0.1, learning_rate=0.2)
    options = {"b1": 0.9, "weight_decay": 0.1}
    ours, theirs = make_optimizer(config, 10), make(0.2, **options)
    params, grads = {"prompt": START}, {"prompt": jnp.sin(START)}
    found, states = [], []
    for tx in (ours, theirs):
        state = tx.init(params)
        update, state = tx.update(grads, state, params)
        found.append(tx.update(update, state, params)[0])
        states.append(jax.tree.structure(state))
    np.testing.assert_array_equal(found[0]["prompt"], found[1]["prompt"])
    assert states[0] == states[1]


class Parameterized(Alone):
    """A run that trains leaves in float64 instead of a prompt."""

    def __init__(self, number, params, name):
        super().__init__(number, params, 1, jnp.float64)
        start = jnp.asarray(np.asarray(self.state.trained["prompt"]), jnp.float32)
        config = PromptConfig(length=len(start), parameterization=name)
        leaves = parameterize(config, jax.random.key(number), start, TABLE)
        leaves = jax.tree.map(lambda x: x.astype(jnp.float64), leaves)
        trained, self.frozen = split(
            tree := {"t5": params, "prompt": leaves}, label_params(tree, "prompt")
        )
        self.state = init_state(trained, self.tx, patience=None, keep_best=True)

    def batch(self, step):
        rng = np.random.default_rng((step, self.steps))
        inputs, targets = (jnp.asarray(rng.integers(3, 300, (4, width))) for width in (9, 3))
        return {"inputs": inputs, "targets": targets}


@pytest.mark.slow
def test_parameterizations_that_train_together_train_as_alone():
    with jax.enable_x64(True):
        model = T5(tiny.SHAPE, dtype=jnp.float64)
        params = tiny.random_params(tiny.SHAPE)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        runs = [Parameterized(n, params, name) for n, name in enumerate((*NAMES, "direct"))]
        update = update_together(model, runs)
        states = [jax.tree.map(jnp.copy, run.state) for run in runs]
        for number in range(2):
            states, metrics = update(states, number)
        for run, found, of_step in zip(runs, states, metrics):
            step, state = jit_step(model, run.tx, LOSS), jax.tree.map(jnp.copy, run.state)
            for number in range(2):
                state, expected = step(state, run.frozen, run.batch(number), run.key)
            assert jax.tree.structure(found) == jax.tree.structure(state)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
                (found, of_step),
                (state, expected),
            )
            assert np.isclose(
                of_step["prompt_norm"],
                jnp.linalg.norm(materialize(found.trained["prompt"]), axis=1).mean(),
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_leaves_is_that_of_the_loss(name):
    """The step takes the gradient of the folded prompt and pulls it back."""
    with jax.enable_x64(True):
        model = T5(tiny.SHAPE, dtype=jnp.float64)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.random_params(tiny.SHAPE))
        run = Parameterized(1, params, name)
        tx = make_tx(OptimizerConfig(name="sgd", learning_rate=1.0, factor_rate=1.0), 10, "prompt")
        state = init_state(run.state.trained, tx, patience=None, keep_best=False)
        batch = run.batch(0)

        def loss(leaves):
            tree = {"t5": params, "prompt": materialize(leaves)}
            logits = forward(model, tree, batch["inputs"], batch["targets"])
            picked = jax.nn.log_softmax(logits)[
                np.arange(4)[:, None], np.arange(3), batch["targets"]
            ]
            return -picked.sum()

        plain = dataclasses.replace(LOSS, z_loss=0.0, label_smoothing=0.0, reduction="sum")
        before = jax.tree.map(np.asarray, state.trained["prompt"])
        expected = jax.jit(jax.grad(loss))(state.trained["prompt"])
        after, _ = jit_step(model, tx, plain)(state, run.frozen, batch, run.key)
        jax.tree.map(
            lambda a, b, g: np.testing.assert_allclose(b - a, -g, rtol=1e-7, atol=1e-9),
            before,
            after.trained["prompt"],
            expected,
        )


@pytest.fixture(
    scope="module", params=["residual", pytest.param("superposition", marks=pytest.mark.slow)]
)
def run(request, tmp_path_factory):
    """A finished run of 12 steps, and its config."""
    folder = tmp_path_factory.mktemp(request.param)
    rank = {"residual": 6, "superposition": 8}[request.param]
    prompt = PromptConfig(length=3, parameterization=request.param, rank=rank)
    config = tiny.train_config(folder, prompt=prompt, dropout_rate=0.0)
    return config, folder / "run", fit(config, folder / "run")


def test_a_run_writes_the_folded_prompt_and_keeps_its_leaves(run):
    config, folder, result = run
    state = ocp.StandardCheckpointer().restore(folder / "checkpoints" / "12" / "state")
    leaves = state["best"]["trained"]["prompt"]
    assert list(leaves) == [config.prompt.parameterization]
    prompt, _ = load_prompt(folder / "prompt.safetensors")
    np.testing.assert_array_equal(prompt, materialize(leaves))
    assert prompt.shape == (3, 16) and result["trained_params"] == count_params(leaves)
    assert evaluate_run(folder, "test")["score"] == result["score"]
    backbone = load_backbone(config.model)
    ids = jnp.arange(3, 11)[None]
    logits = [
        forward(backbone.model, {"t5": backbone.params, "prompt": p}, ids, ids[:, :3])
        for p in (jnp.asarray(prompt), materialize(leaves))
    ]
    np.testing.assert_allclose(*logits, atol=1e-6)
    assert len(predict_run(folder, ["the cat likes the yard"])) == 1


def test_a_run_that_was_left_ends_as_an_undisturbed_one(run, tmp_path):
    config, folder, result = run
    assert fit_together([config], [tmp_path / "run"], stops=[8]) == [None]
    resumed = fit(config, tmp_path / "run")
    for name in ("prompt.safetensors",):
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()
    assert resumed["score"] == result["score"]


def test_the_start_is_the_same_prompt_in_all_parameterizations(tmp_path):
    backbone = load_backbone(str(tiny.write_backbone(tmp_path)))
    starts = [
        init_prompt(prompt_config(name), jax.random.key(0), backbone, ("animal", "plant"))
        for name in ("direct", *NAMES)
    ]
    for start in starts[1:]:
        np.testing.assert_array_equal(start, starts[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parameterization": "superpose"},
            "prompt.parameterization is 'superpose', expected one of direct, residual, "
            r"superposition, low_rank, projection \(did you mean 'superposition'\?\)",
        ),
        ({"parameterization": "low_rank", "rank": 0}, "prompt.rank is 0, expected 1 or more"),
        ({"rank": 4}, "prompt.rank is 4 with prompt.parameterization 'direct', which has none"),
        (
            {"parameterization": "superposition", "rank": 99, "length": 100},
            "prompt.rank is 99 with 100 vectors, which a superposition starts from; expected 100",
        ),
        (
            {"parameterization": "low_rank", "rank": 6, "length": 5},
            "prompt.rank is 6 with 5 vectors, expected at most 5: a higher rank is ",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(**options)


def test_leaves_of_no_parameterization_are_refused():
    with pytest.raises(ValueError, match="prompt.parameterization is 'mlp', expected one of resid"):
        materialize({"mlp": {"vectors": {}, "factors": {}}})


def test_the_config_of_a_run_says_its_parameterization(run):
    config, folder, _ = run
    text = (folder / "config.yaml").read_text()
    assert f"parameterization: {config.prompt.parameterization}" in text
    assert json.loads((folder / "result.json").read_text())["trained_params"] > 3 * 16
