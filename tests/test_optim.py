import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spt_jax.config.train import USED_BY, OptimizerConfig
from spt_jax.optim import make_optimizer, make_schedule, make_tx
from spt_jax.pytree import label_params, nbytes, split

D = 160


def reference(prompt, gradients, *, lr=0.3, decay=1e-5, offset=1_100_000):
    """Adafactor of T5X in numpy float64, from its formulas: v starts at 0 at step `offset`."""
    p = prompt.astype(np.float64)
    factored = min(p.shape) >= 128
    v, row, col = np.zeros_like(p), np.zeros(p.shape[0]), np.zeros(p.shape[1])
    updates = []
    for t, g in enumerate(gradients):
        beta = 1 - (t + offset + 1.0) ** -0.8
        square = g.astype(np.float64) ** 2 + 1e-30
        if factored:
            row = beta * row + (1 - beta) * square.mean(axis=1)
            col = beta * col + (1 - beta) * square.mean(axis=0)
            y = g * (row / row.mean())[:, None] ** -0.5 * col[None, :] ** -0.5
        else:
            v = beta * v + (1 - beta) * square
            y = g * v**-0.5
        y = y / max(1.0, np.sqrt(np.mean(y**2)))
        updates.append(-lr * y - decay * p)
        p = p + updates[-1]
    return p, updates


def gradients(length):
    found = [
        np.asarray(jax.random.normal(jax.random.key(seed), (length, D))) * scale
        for seed, scale in ((1, 1.0), (2, 0.05), (3, 20.0))
    ]
    for g in found:
        g.setflags(write=True)
        g[0] = 0  # a row without gradient
    return found


@pytest.mark.parametrize("length", [100, 150])
def test_t5x_1100k_equals_the_formulas_in_float64(length):
    prompt = np.asarray(jax.random.normal(jax.random.key(0), (length, D)), np.float32)
    steps = gradients(length)
    expected, updates = reference(prompt, steps)
    tx = make_optimizer(OptimizerConfig(), 30_000)
    params = {"prompt": jnp.asarray(prompt)}
    state = tx.init(params)
    for g, theirs in zip(steps, updates):
        ours, state = tx.update({"prompt": jnp.asarray(g)}, state, params)
        np.testing.assert_allclose(
            ours["prompt"], theirs, atol=1e-5 * np.abs(theirs).max(), rtol=1e-5
        )
        params = optax.apply_updates(params, ours)
    np.testing.assert_allclose(params["prompt"], expected, rtol=1e-5, atol=1e-5)


def test_first_update_is_the_learning_rate_times_the_sign():
    prompt = {"prompt": jnp.zeros((4, 8))}
    g = jax.random.normal(jax.random.key(0), (4, 8))
    tx = make_optimizer(OptimizerConfig(weight_decay=0.0), 10)
    updates, _ = tx.update({"prompt": g}, tx.init(prompt), prompt)
    np.testing.assert_allclose(updates["prompt"], -0.3 * jnp.sign(g), rtol=1e-5)


def test_fresh_is_plain_optax():
    config = OptimizerConfig(preset="fresh")
    plain = optax.adafactor(0.3, multiply_by_parameter_scale=False, weight_decay_rate=1e-5)
    prompt = {"prompt": jnp.ones((4, 8))}
    ours = make_optimizer(config, 10)
    a, b = ours.init(prompt), plain.init(prompt)
    for g in gradients(4):
        g = {"prompt": jnp.asarray(g[:, :8])}
        (x, a), (y, b) = ours.update(g, a, prompt), plain.update(g, b, prompt)
        np.testing.assert_array_equal(x["prompt"], y["prompt"])


PARAMS = {"t5": {"a": jnp.ones((3, 3)), "b": jnp.ones((5,))}, "prompt": jnp.ones((100, 16))}


@pytest.mark.parametrize("name", ["adafactor", "adamw", "adam", "sgd", "lion"])
def test_frozen_leaves_get_an_update_of_exactly_zero(name):
    decay = {"weight_decay": 0.1} if name in USED_BY["weight_decay"] else {}
    tx = make_tx(OptimizerConfig(name=name, **decay), 10, "prompt")
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates["t5"]))
    assert jnp.all(updates["prompt"] != 0)


@pytest.mark.parametrize("length", [1, 100, 127])
def test_optimizer_bytes_depend_on_the_prompt_alone(length):
    params = {**PARAMS, "prompt": jnp.ones((length, 256))}
    trained, _ = split(params, label_params(params, "prompt"))
    tx = make_tx(OptimizerConfig(), 10, "prompt")
    assert nbytes(tx.init(trained)) == 4 * length * 256 + 12


def test_holes_give_the_updates_of_the_full_tree():
    tx = make_tx(OptimizerConfig(), 10, "prompt")
    trained, _ = split(PARAMS, label_params(PARAMS, "prompt"))
    g = jax.random.normal(jax.random.key(0), (100, 16))
    full, _ = tx.update(
        {**jax.tree.map(jnp.ones_like, PARAMS), "prompt": g}, tx.init(PARAMS), PARAMS
    )
    holes, _ = tx.update({**trained, "prompt": g}, tx.init(trained), trained)
    np.testing.assert_array_equal(full["prompt"], holes["prompt"])


def test_runs_of_a_constant_rate_share_one_optimizer_whatever_their_steps():
    def is_shared(**options):
        config = OptimizerConfig(**options)
        return make_tx(config, 10, "prompt") is make_tx(config, 20, "prompt")

    assert is_shared()
    assert not is_shared(schedule="linear")
    assert not is_shared(warmup_steps=2)


def rates(steps=(0, 5, 10, 40, 90, 100), **options):
    config = OptimizerConfig(learning_rate=1.0, **options)
    return [round(float(make_schedule(config, 100)(step)), 4) for step in steps]


def test_schedules():
    assert make_schedule(OptimizerConfig(), 100) == 0.3
    assert rates(schedule="linear") == [1, 0.95, 0.9, 0.6, 0.1, 0]
    assert rates(schedule="constant", warmup_steps=10) == [0, 0.5, 1, 1, 1, 1]
    assert rates(schedule="rsqrt", warmup_steps=10) == [0, 0.5, 1, 0.5, 0.3333, 0.3162]
    assert rates(schedule="cosine", warmup_steps=10)[2:] == [1, 0.75, 0.0302, 0]
    cooled = rates(schedule="rsqrt", warmup_steps=10, cooldown_steps=20)
    assert cooled == [0, 0.5, 1, 0.5, 0.1667, 0]


def test_clip_norm_bounds_the_gradient():
    prompt = {"prompt": jnp.zeros((2, 2))}
    tx = make_optimizer(OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=0.5), 10)
    updates, _ = tx.update({"prompt": jnp.full((2, 2), 10.0)}, tx.init(prompt), prompt)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_clips_and_scales_a_stack_of_layers_by_layer(momentum):
    # T5X has a leaf for each layer. Layers of different size tell a joint RMS from their own.
    shape, sizes = (3, 130, 140), np.array([0.01, 1.0, 30.0])[:, None, None]
    keys = jax.random.split(jax.random.key(0), 4)
    stack = np.asarray(jax.random.normal(keys[0], shape)) * sizes
    stacked = {"encoder": {"layers": {"kernel": jnp.asarray(stack, jnp.float32)}}}
    apart = [{"kernel": jnp.asarray(layer, jnp.float32)} for layer in stack]
    tx = make_optimizer(
        OptimizerConfig(preset="fresh", multiply_by_parameter_scale=True, momentum=momentum), 10
    )
    single = optax.adafactor(
        0.3, decay_offset=0, momentum=momentum, weight_decay_rate=1e-5, min_dim_size_to_factor=128
    )
    state, states = tx.init(stacked), [single.init(layer) for layer in apart]
    for key in keys[1:]:
        grads = np.asarray(jax.random.normal(key, shape)) * sizes[::-1]
        updates, state = tx.update(
            {"encoder": {"layers": {"kernel": jnp.asarray(grads, jnp.float32)}}}, state, stacked
        )
        stacked = optax.apply_updates(stacked, updates)
        for number, layer in enumerate(apart):
            own = {"kernel": jnp.asarray(grads[number], jnp.float32)}
            update, states[number] = single.update(own, states[number], layer)
            apart[number] = optax.apply_updates(layer, update)
            np.testing.assert_allclose(
                updates["encoder"]["layers"]["kernel"][number], update["kernel"], rtol=2e-5
            )


def test_the_slots_of_adafactor_are_those_of_optax():
    # Checkpoints of earlier versions hold the state of `optax.adafactor`.
    params = {"prompt": jnp.ones((3, 8)), "layers": {"kernel": jnp.ones((2, 130, 140))}}
    ours = make_optimizer(OptimizerConfig(), 10).init(params)
    theirs = optax.adafactor(0.3, multiply_by_parameter_scale=False, weight_decay_rate=1e-5).init(
        params
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
