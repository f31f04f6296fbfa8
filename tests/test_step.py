import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import pack, random_params

from spt_jax import step
from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import LossConfig, OptimizerConfig
from spt_jax.errors import RunError
from spt_jax.optim import make_tx
from spt_jax.pytree import count_params, device_digest, label_params, named_leaves, split
from spt_jax.sharding import make_mesh, replicated, state_shardings
from spt_jax.step import jit_step, loss_and_grads, require_finite
from spt_jax.t5 import T5, T5Config
from spt_jax.train_state import init_state

SHAPE = T5Config(
    vocab_size=40,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=1,
)
BATCH = {
    "inputs": np.array([[5, 6, 7, 1], [8, 1, 0, 0], [9, 9, 1, 0], [3, 4, 5, 1]], np.int32),
    "targets": np.array([[9, 1, 0], [10, 11, 1], [12, 1, 0], [13, 1, 0]], np.int32),
}
KEY = jax.random.key(7)
grads_of = jax.jit(loss_and_grads, static_argnames=("model", "loss", "accumulate"))


def make(tune="prompt", model=None, **optimizer):
    model = model or T5(SHAPE)
    params = {"t5": random_params(SHAPE)}
    params["prompt"] = jax.random.normal(jax.random.key(1), (3, 16))
    trained, frozen = split(params, label_params(params, tune))
    tx = make_tx(OptimizerConfig(**optimizer), 10, tune)
    state = init_state(trained, tx, patience=None, keep_best=True)
    return state, frozen, jit_step(model, tx, LossConfig())


def test_a_step_changes_the_prompt_and_nothing_else():
    state, frozen, step = make()
    before, digest = np.array(state.trained["prompt"]), device_digest(frozen)
    count = count_params(frozen)
    state, metrics = step(state, frozen, BATCH, KEY)
    assert np.all(np.abs(np.asarray(state.trained["prompt"]) - before) > 0.2)  # 0.3 each, decayed
    assert device_digest(frozen) == digest
    assert [name for name, _ in named_leaves(state.trained)] == ["prompt"]
    assert count == count_params(jax.eval_shape(T5(SHAPE).init_params, KEY))
    assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))


def test_no_gradient_of_a_frozen_leaf_is_in_the_program():
    state, frozen, step = make(model=T5(SHAPE))
    jaxpr = step.trace(state, frozen, BATCH, KEY).jaxpr
    # The largest frozen leaf is the embedding [40, 16]; nothing of the step has its gradient.
    assert all(out.aval.shape != (40, 16) for out in jaxpr.jaxpr.outvars)
    _, grads = grads_of(state.trained, frozen, BATCH, KEY, model=T5(SHAPE), loss=LossConfig())
    assert [name for name, _ in named_leaves(grads)] == ["prompt"]


def test_model_tuning_is_the_same_step_with_every_leaf_trained():
    state, frozen, step = make("model")
    assert not jax.tree.leaves(frozen)
    before = device_digest(state.trained)
    state, _ = step(state, frozen, BATCH, KEY)
    after = device_digest(state.trained)
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize(
    ("tune", "reduction"),
    [("prompt", "sum"), pytest.param("model", "mean", marks=pytest.mark.slow)],
)
def test_accumulation_changes_neither_loss_nor_gradient(tune, reduction):
    state, frozen, _ = make(tune)
    options = dict(model=T5(SHAPE), loss=LossConfig(reduction=reduction))
    whole, grads = grads_of(state.trained, frozen, BATCH, KEY, **options)
    sums, parts = grads_of(state.trained, frozen, BATCH, KEY, **options, accumulate=2)
    np.testing.assert_allclose(sums.total(reduction), whole.total(reduction), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max())),
        parts,
        grads,
    )


def test_packed_rows_have_the_loss_and_gradient_of_their_examples():
    params = {"t5": random_params(SHAPE)}
    nothing_frozen = jax.tree.map(lambda _: None, params)
    options = {"model": T5(SHAPE), "loss": LossConfig()}
    (wanted, grads), (given, packed_grads) = (
        grads_of(params, nothing_frozen, batch, KEY, **options) for batch in (BATCH, pack(**BATCH))
    )
    np.testing.assert_allclose(given.cross_entropy, wanted.cross_entropy, rtol=1e-5)
    assert given.tokens == wanted.tokens
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        packed_grads,
        grads,
    )


def test_mean_is_the_sum_over_the_number_of_target_tokens():
    state, frozen, _ = make()
    (_, total), (_, mean) = (
        grads_of(
            state.trained, frozen, BATCH, KEY, model=T5(SHAPE), loss=LossConfig(reduction=name)
        )
        for name in ("sum", "mean")
    )
    expected = 9 * np.asarray(mean["prompt"])
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(total["prompt"], expected, rtol=0, atol=tolerance)


def test_dropout_is_a_function_of_seed_and_step():
    state, frozen, step = make(model=T5(SHAPE, dropout_rate=0.3))

    def loss(state, key):
        copy = jax.tree.map(jnp.copy, state)  # the step donates its state
        return float(step(copy, frozen, BATCH, key)[1]["loss"])

    later = state.replace(step=jnp.int32(1))
    assert loss(state, KEY) == loss(state, KEY)
    assert len({loss(state, KEY), loss(later, KEY), loss(state, jax.random.key(8))}) == 3


def test_the_best_prompt_is_not_the_donated_one():
    state, frozen, step = make()
    start = np.array(state.trained["prompt"])
    for _ in range(2):
        state, _ = step(state, frozen, BATCH, KEY)
    np.testing.assert_array_equal(state.best.trained["prompt"], start)


def test_one_compilation_for_each_shape():
    state, frozen, step = make()
    for batch in (BATCH, BATCH, {name: rows[:2] for name, rows in BATCH.items()}):
        state, _ = step(state, frozen, batch, KEY)
    assert step._cache_size() == 2


def test_a_metric_that_is_not_finite_ends_the_run():
    with pytest.raises(RunError, match=r"loss is nan at step 12 \(loss nan, grad_norm 3\); lower"):
        require_finite(12, {"loss": float("nan"), "grad_norm": 3.0})
    require_finite(12, {"loss": 1.0})


@pytest.fixture
def eigen_unknown():
    """Have `step_options` ask XLA again, before the test and after it."""
    step._knows_eigen.cache_clear()
    yield
    step._knows_eigen.cache_clear()


def test_a_step_multiplies_without_ynnpack_on_x86(monkeypatch, eigen_unknown):
    def program(options):
        x = jnp.ones((256, 256))
        return jax.jit(jnp.matmul, compiler_options=options).lower(x, x).compile().as_text()

    monkeypatch.setattr(step.machine, "machine", lambda: "x86_64")
    options = step.step_options(None)
    if "__ynn_fusion" not in program({}):
        pytest.skip("this jaxlib, or this processor, multiplies without YNNPACK")
    assert "__ynn_fusion" not in program(options)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch, eigen_unknown):
    monkeypatch.setattr(step.machine, "machine", lambda: "x86_64")
    monkeypatch.setattr(step, "_EIGEN", {"xla_cpu_of_another_year": ""})
    assert step.step_options(None) == {}


@pytest.mark.parametrize(
    "platform, machine", [("tpu", "x86_64"), ("gpu", "x86_64"), ("cpu", "arm64")]
)
def test_other_devices_get_no_options(monkeypatch, eigen_unknown, platform, machine):
    monkeypatch.setattr(step.machine, "machine", lambda: machine)
    monkeypatch.setattr(step, "platform", lambda mesh: platform)
    assert step.step_options(types.SimpleNamespace()) == {}


def test_equal_settings_share_one_compiled_step():
    state, frozen, _ = make()
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def step(**changes):
        model = T5(SHAPE, mesh=mesh)
        tx = make_tx(OptimizerConfig(**changes), 10, "prompt")
        shardings = (state_shardings(state, mesh), replicated(mesh))
        return jit_step(model, tx, LossConfig(), shardings=shardings)

    assert step() is step()
    assert step() is not step(learning_rate=0.1)
