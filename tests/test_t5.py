import dataclasses
import functools
import itertools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_params

from spt_jax.pytree import count_params, named_leaves
from spt_jax.t5 import PRESETS, T5, T5Config, stack, thresholds
from spt_jax.t5.attention import relative_position_bucket
from spt_jax.t5.stack import EncoderLayer

SHAPE = T5Config(
    vocab_size=50,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_heads=3,
    num_layers=2,
    num_decoder_layers=2,
    relpos_buckets=8,
    relpos_max_distance=16,
)
V1_0 = dataclasses.replace(SHAPE, mlp="relu", tied_head=True)


# Jitted: called eagerly, a scanned model compiles again at every call.
@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def apply(model, params, *args, **kwargs):
    return model.apply({"params": params}, *args, **kwargs)


def run(model, params, embedded, mask, ids, **kwargs):
    return apply(model, params, embedded, mask, apply(model, params, ids, method="embed"), **kwargs)


@functools.cache
def make(config):
    """A model of this shape, its parameters, embedded inputs, their mask, and decoder inputs."""
    model = T5(config)
    params = random_params(config)
    embedded = jax.random.normal(jax.random.key(1), (2, 9, 16))
    mask = jnp.arange(9)[None, :] < jnp.array([[9], [5]])
    ids = jnp.array([[0, 7, 8, 9], [0, 4, 1, 0]])
    return model, params, embedded, mask, ids


@pytest.fixture(params=[SHAPE, V1_0], ids=["v1_1", "v1_0"])
def setup(request):
    return make(request.param)


@pytest.mark.parametrize(
    "name, count",
    [
        ("t5-v1_1-small", 76_961_152),
        ("t5-v1_1-base", 247_577_856),
        ("t5-v1_1-large", 783_150_080),
        ("t5-v1_1-xl", 2_849_757_184),
        ("t5-v1_1-xxl", 11_135_332_352),
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-3b", 2_851_598_336),
        ("t5-11b", 11_307_321_344),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    params = jax.eval_shape(T5(PRESETS[name]).init_params, jax.random.key(0))
    assert count_params(params) == count


def test_every_preset_has_a_count_above():
    assert len(PRESETS) == 10


def test_buckets_of_the_original():
    # Distances key - query; values from the definition in Raffel et al. 2020 worked by hand:
    # 16 exact buckets a side are 8 exact and 8 logarithmic ones up to 128.
    distance = np.array([0, -1, -7, -8, -12, -127, -128, -500, 1, 7, 8, 500])
    found = relative_position_bucket(distance, bidirectional=True, buckets=32, max_distance=128)
    assert found.tolist() == [0, 1, 7, 8, 9, 15, 15, 15, 17, 23, 24, 31]
    causal = relative_position_bucket(distance, bidirectional=False, buckets=32, max_distance=128)
    assert causal.tolist() == [0, 1, 7, 8, 12, 31, 31, 31, 0, 0, 0, 0]


def test_what_is_masked_changes_nothing(setup):
    model, params, embedded, mask, ids = setup
    other = jnp.where(mask[..., None], embedded, 1e3 * jnp.ones_like(embedded))
    np.testing.assert_array_equal(
        run(model, params, embedded, mask, ids), run(model, params, other, mask, ids)
    )


def test_decoder_is_causal(setup):
    # The gradient of the logits at t with respect to inputs after t is exactly zero.
    model, params, embedded, mask, ids = setup
    encoded = apply(model, params, embedded, mask, method="encode")
    inputs = apply(model, params, ids, method="embed")

    @jax.jit
    def gradient(x, t):
        def loss(x):
            return jnp.sum(
                jnp.square(apply(model, params, x, encoded, mask, method="decode")[:, t])
            )

        return jax.grad(loss)(x)

    for t in range(3):
        grads = gradient(inputs, t)
        assert jnp.all(grads[:, t + 1 :] == 0)
        assert jnp.all(jnp.any(grads[:, : t + 1] != 0, axis=-1))


def test_cached_steps_equal_the_full_decoder(setup):
    model, params, embedded, mask, ids = setup
    full = run(model, params, embedded, mask, ids)
    encoded = apply(model, params, embedded, mask, method="encode")
    cache = model.apply({"params": params}, encoded, ids.shape[1], method="start_cache")
    for t in range(ids.shape[1]):
        one = apply(model, params, ids[:, t : t + 1], method="embed")
        logits, cache = apply(model, params, one, cache, jnp.int32(t), mask, method="decode_step")
        np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-5)


@pytest.mark.parametrize(
    "config, beams",
    [
        pytest.param(SHAPE, 2, id="v1_1-2"),
        pytest.param(V1_0, 1, id="v1_0-1"),
        pytest.param(SHAPE, 1, id="v1_1-1", marks=pytest.mark.slow),
        pytest.param(V1_0, 2, id="v1_0-2", marks=pytest.mark.slow),
    ],
)
def test_scanned_decoding_equals_unrolled_decoding(config, beams, monkeypatch):
    model, params, embedded, mask, ids = make(config)

    def decode():
        logits = []
        encoded = model.apply({"params": params}, embedded, mask, method="encode")
        cache = model.apply({"params": params}, encoded, 3, beams, method="start_cache")
        ancestors = jnp.arange(beams)[::-1]  # each beam goes on from the other
        for t in range(3):
            one = model.apply({"params": params}, ids[:, t : t + beams], method="embed")
            found, cache = model.apply(
                {"params": params}, one, cache, jnp.int32(t), mask, method="decode_step"
            )
            past = cache.past.replace(ancestors=cache.past.ancestors[:, ancestors])
            logits, cache = [*logits, found], cache.replace(past=past)
        return jnp.stack(logits), cache.layers

    # A lambda each, because jax traces one function once and would not see the other setting.
    unrolled, layers = jax.jit(lambda: decode())()
    monkeypatch.setattr(thresholds, "UNROLLED_ON_CPU", 1)
    scanned, no_layers = jax.jit(lambda: decode())()
    assert layers is not None and no_layers is None
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)


def test_more_layers_are_unrolled_on_cpu():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    assert stack.is_unrolled(12, mesh) and not stack.is_unrolled(24, mesh)
    mesh = devices_of("tpu")
    assert stack.is_unrolled(4, mesh) and not stack.is_unrolled(12, mesh)


def test_more_layers_of_an_encoder_are_unrolled_on_tpu():
    mesh, gathered = devices_of("tpu"), devices_of("tpu", fsdp=2)
    assert stack.is_unrolled(24, mesh, encoder=True)
    assert not stack.is_unrolled(25, mesh, encoder=True)
    assert not stack.is_unrolled(12, gathered, encoder=True)
    assert not stack.is_unrolled(12, devices_of("gpu"), encoder=True)


def devices_of(platform, fsdp=1):
    """The parts of a mesh that decide about its layers."""
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(devices=np.array([device]), shape={"fsdp": fsdp})


@pytest.mark.parametrize("fsdp", [1, 2])
def test_no_cast_and_no_gathered_kernel_is_kept_for_the_backward_pass(setup, fsdp):
    model, params, embedded, mask, ids = setup
    devices = np.array(jax.devices()[:fsdp]).reshape(1, fsdp, 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "model"))
    dtype = jnp.bfloat16 if fsdp == 1 else jnp.float32  # a cast, or a gathered copy
    model = model.clone(dtype=dtype, mesh=mesh)

    def kept(params, embedded):
        def run(embedded):
            start = model.apply({"params": params}, ids, method="embed")
            return model.apply({"params": params}, embedded, mask, start)

        return jax.vjp(run, embedded)[1], params

    jaxpr = jax.make_jaxpr(kept)(params, embedded)
    inputs = set(jaxpr.jaxpr.invars)
    shapes = [leaf.shape for name, leaf in named_leaves(params) if name.endswith("kernel")]
    shapes += [shape[1:] for shape in shapes]
    copies = [var for var in jaxpr.jaxpr.outvars if var.aval.shape in shapes and var not in inputs]
    assert not copies


def test_scanned_layers_equal_layers_one_by_one(setup):
    model, params, embedded, mask, _ = setup
    config, encoder = model.config, params["encoder"]
    bias = model.apply(
        {"params": params}, lambda m: m.encoder.relpos_bias(9, 9), method=lambda m, f: f(m)
    )
    layer = EncoderLayer(config, jnp.float32, 0.0, "none", None)

    @jax.jit
    def one(own, x):
        return layer.apply({"params": own}, x, bias, mask[:, None, None, :], False)[0]

    x = embedded
    for number in range(config.num_layers):
        x = one(jax.tree.map(lambda leaf, n=number: leaf[n], encoder["layers"]), x)
    scale = encoder["encoder_norm"]["scale"]
    x = nn.RMSNorm(epsilon=1e-6).apply({"params": {"scale": scale}}, x)
    scanned = apply(model, params, embedded, mask, method="encode")
    np.testing.assert_allclose(scanned[0], x[0], atol=2e-5)


@functools.cache
def loss_and_grads(config, remat, unrolled):
    """Loss and gradient with dropout of a model that computes this again in the backward pass."""
    # Random masks are most of what XLA compiles here, so the layers are few.
    layers = {"num_layers": 1 if unrolled else 2, "num_decoder_layers": 1}
    model, params, embedded, mask, ids = make(dataclasses.replace(config, **layers))

    def loss(params):
        start = model.apply({"params": params}, ids, method="embed")
        noisy = model.clone(dropout_rate=0.3, remat=remat)
        rngs = {"dropout": jax.random.key(0)}
        logits = noisy.apply({"params": params}, embedded, mask, start, train=True, rngs=rngs)
        return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "UNROLLED_ON_CPU", 12 if unrolled else 0)
        return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "policy, version, layers",
    [
        pytest.param(*case, marks=() if case == ("full", "v1_0", "scanned") else pytest.mark.slow)
        for case in itertools.product(
            ("light", "minimal", "full"), ("v1_1", "v1_0"), ("unrolled", "scanned")
        )
    ],
)
def test_remat_changes_neither_loss_nor_gradient(policy, version, layers):
    config, unrolled = {"v1_1": SHAPE, "v1_0": V1_0}[version], layers == "unrolled"
    plain, plain_grads = loss_and_grads(config, "none", unrolled)
    remat, remat_grads = loss_and_grads(config, policy, unrolled)
    np.testing.assert_allclose(plain, remat, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max())),
        plain_grads,
        remat_grads,
    )


def test_light_remat_keeps_neither_keys_nor_values_of_the_encoder(setup):
    model, params, embedded, mask, _ = setup

    def kept(remat):
        def encode(embedded):
            return model.clone(remat=remat).apply(
                {"params": params}, embedded, mask, method="encode"
            )

        found = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(encode, x)[1], embedded))
        return sum(leaf.size for leaf in found if jnp.issubdtype(leaf.dtype, jnp.floating))

    c = model.config
    both = 2 * c.num_layers * embedded.shape[0] * embedded.shape[1] * c.num_heads * c.d_kv
    assert kept("none") - kept("light") >= 0.9 * both  # the norm's statistics are kept instead


def test_bfloat16_activations_give_float32_logits_near_the_exact_ones(setup):
    model, params, embedded, mask, ids = setup
    exact = run(model, params, embedded, mask, ids)
    half = run(model.clone(dtype=jnp.bfloat16), params, embedded, mask, ids)
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - exact).max() < 0.05 * jnp.abs(exact).max()


def test_dropout_needs_train_and_depends_on_its_key(setup):
    one_layer = dataclasses.replace(setup[0].config, num_layers=1, num_decoder_layers=1)
    model, params, embedded, mask, ids = make(one_layer)
    noisy = model.clone(dropout_rate=0.5)
    exact = run(model, params, embedded, mask, ids)
    np.testing.assert_array_equal(run(noisy, params, embedded, mask, ids), exact)
    one, same, other = (
        run(noisy, params, embedded, mask, ids, train=True, rngs={"dropout": jax.random.key(k)})
        for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert jnp.abs(one - other).max() > 0.01 and jnp.abs(one - exact).max() > 0.01


def test_dropout_keeps_the_expected_value_and_drops_whole_features():
    from spt_jax.t5.layers import dropout

    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return dropout(0.25, x, broadcast=-2, module=self, train=True)

    dropped = Drop().apply({}, jnp.ones((64, 5, 64)), rngs={"dropout": jax.random.key(0)})
    assert jnp.all(dropped == dropped[:, :1])  # one mask for all positions
    assert abs(float(jnp.mean(dropped)) - 1) < 0.05
    assert set(np.unique(dropped).tolist()) == {0.0, float(np.float32(1 / 0.75))}


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"T5Config.num_heads is 0, expected 1 or more"):
        dataclasses.replace(SHAPE, num_heads=0)
    with pytest.raises(ValueError, match="T5Config.mlp is 'swish', expected one of gated_gelu, re"):
        dataclasses.replace(SHAPE, mlp="swish")
    with pytest.raises(ValueError, match=r"remat is True, expected 'none', 'light', 'minimal' or"):
        jax.eval_shape(T5(SHAPE, remat=True).init_params, jax.random.key(0))
