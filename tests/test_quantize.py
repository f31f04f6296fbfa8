"""Int8 weights: the quantizer, and that a model computes what it would with the same floats."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import checkpoints, tiny

from spt_jax.config.devices import MeshConfig
from spt_jax.config.plan import PlanConfig
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.models.backbone import convert_backbone, load_backbone
from spt_jax.models.names import leaf_shapes
from spt_jax.planning.programs import abstract_params
from spt_jax.prompts.read import read_prompt
from spt_jax.pytree import count_params, fingerprint, leaf_name, named_leaves, nbytes
from spt_jax.sharding import make_mesh, param_shardings
from spt_jax.t5 import PRESETS, T5, thresholds
from spt_jax.t5.quantize import (
    Quantized,
    dequantize,
    input_axis,
    is_matrix,
    quantize,
    quantize_params,
)
from spt_jax.train import fit

SHAPE = dataclasses.replace(tiny.SHAPE, num_heads=8, num_layers=2, num_decoder_layers=2)
SHAPES = {"1.1": SHAPE, "1.0": dataclasses.replace(SHAPE, mlp="relu", tied_head=True)}
LARGEST = float(np.float32(3e38))
FLOATS = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=True)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5))


def floats_of(params):
    """The params with the float32 matrices that the quantized ones stand for."""

    def convert(path, leaf):
        return dequantize(leaf, input_axis(leaf_name(path)))

    return jax.tree_util.tree_map_with_path(
        convert, params, is_leaf=lambda leaf: isinstance(leaf, Quantized)
    )


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def output(prompt, params, model, targets=3):
    """The logits of two rows with a prompt in front of their inputs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, model.config.vocab_size, (8, 9))
    answers = rng.integers(3, model.config.vocab_size, (8, targets))

    def run(model):
        prompts = jnp.broadcast_to(prompt[None], (8, *prompt.shape)).astype(model.dtype)
        x = jnp.concatenate([prompts, model.embed(ids)], axis=1)
        return model(x, np.ones(x.shape[:2], bool), model.embed(answers))

    return model.apply({"params": params}, method=run)


def value_and_gradient(params, model, targets=3, prompt=None):
    if prompt is None:
        prompt = np.random.default_rng(1).standard_normal((3, model.config.d_model))
        prompt = jnp.asarray(prompt, model.dtype)

    def loss(prompt):
        logits = output(prompt, params, model, targets)
        return jnp.sum(jnp.sin(logits)), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(prompt)
    return np.asarray(logits), np.asarray(gradient)


@given(arrays.arrays(np.float32, SIZES, elements=FLOATS), st.sampled_from([-1, -2]))
def test_a_weight_is_off_by_half_a_scale_at_most(matrix, axis):
    found = quantize(matrix, axis)
    assert found.values.dtype == np.int8 and found.scales.dtype == np.float32
    assert found.scales.shape == np.delete(matrix.shape, axis)
    assert np.all(found.scales > 0) and np.abs(found.values.astype(int)).max() <= 127
    scales = np.expand_dims(found.scales.astype(np.float64), axis)
    error = np.abs(found.values * scales - matrix.astype(np.float64))
    assert np.all(error <= 0.5 * scales * (1 + 1e-4))
    on_device = quantize(jnp.array(matrix), axis)
    np.testing.assert_allclose(on_device.scales, found.scales, rtol=1e-6)
    # XLA may divide with another last bit, so a value halfway between two may be either.
    assert np.abs(np.subtract(on_device.values, found.values, dtype=int)).max() <= 1


def test_the_largest_weight_of_a_channel_is_kept_and_zeros_stay_zero():
    matrix = np.array([[0.0, 2.0, -3e38], [0.0, -1.0, 1e30]], np.float32)
    found = quantize(matrix, axis=-2)
    np.testing.assert_array_equal(found.values, [[0, 127, -127], [0, -64, 0]])
    np.testing.assert_allclose(dequantize(found, -2)[0], matrix[0], rtol=1e-6)
    layers = quantize(np.stack([matrix, matrix / 2]), axis=-2)  # each layer on its own
    np.testing.assert_array_equal(layers.values, np.stack([found.values] * 2))
    np.testing.assert_allclose(layers.scales[1], layers.scales[0] / 2 + [0.5, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("version, targets, remat", [("1.1", 3, "none"), ("1.0", 9, "light")])
def test_logits_and_gradient_are_those_of_the_dequantized_model(version, targets, remat):
    # With 9 targets the decoder computes keys and values, with 3 it multiplies queries instead.
    params = quantize_params(tiny.random_params(SHAPES[version]))
    model = T5(SHAPES[version], remat=remat)
    found = value_and_gradient(params, model, targets)
    expected = value_and_gradient(floats_of(params), model, targets)
    assert relative(found[0], expected[0]) < 1e-5
    assert relative(found[1], expected[1]) < 1e-5
    # The weights are rounded, or the comparison would say nothing.
    floats = value_and_gradient(tiny.random_params(SHAPES[version]), model, targets)
    assert 1e-3 < relative(found[0], floats[0]) < 0.1


@pytest.mark.slow
def test_the_fused_kernel_takes_int8_weights():
    shape = dataclasses.replace(SHAPE, num_heads=2, d_kv=64, num_layers=1)
    params = tiny.random_params(shape)
    # As in T5 the query kernel is smaller by sqrt(H), or large scores would magnify rounding.
    for stack, attention in (
        ("encoder", "attention"),
        ("decoder", "self_attention"),
        ("decoder", "encoder_decoder_attention"),
    ):
        params[stack]["layers"][attention]["query"]["kernel"] /= 8
    params = quantize_params(params)
    prompt = jnp.asarray(np.random.default_rng(1).standard_normal((55, 16)), jnp.float32)
    plain, fused = T5(shape, attention="plain"), T5(shape, attention="fused")
    found = value_and_gradient(params, fused, prompt=prompt)
    expected = value_and_gradient(floats_of(params), plain, prompt=prompt)
    assert "pallas_call" in str(jax.make_jaxpr(lambda x: output(x, params, fused))(prompt))
    assert relative(found[0], expected[0]) < 1e-5
    assert relative(found[1], expected[1]) < 1e-5


def test_in_bfloat16_only_the_activations_are_rounded():
    params = quantize_params(tiny.random_params(SHAPE), jnp.bfloat16)
    assert params["token_embedder"]["embedding"].scales.dtype == jnp.float32
    assert params["decoder"]["decoder_norm"]["scale"].dtype == jnp.bfloat16
    found = value_and_gradient(params, T5(SHAPE, dtype=jnp.bfloat16))
    expected = value_and_gradient(floats_of(params), T5(SHAPE))
    assert found[0].dtype == np.float32 and relative(found[0], expected[0]) < 0.05


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_decoding_step_by_step_gives_the_logits_of_a_whole_pass(layers, monkeypatch):
    monkeypatch.setattr(thresholds, "UNROLLED_ON_CPU", 12 if layers == "unrolled" else 0)
    params, model = quantize_params(tiny.random_params(SHAPE)), T5(SHAPE)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(3, 320, (8, 6)), rng.integers(3, 320, (8, 3))
    mask = np.ones(ids.shape, bool)

    @jax.jit
    def run(params):
        def decode(model):
            encoded = model.encode(model.embed(ids), mask)
            embedded, cache = model.embed(targets), model.start_cache(encoded, 3)
            steps = []
            for position in range(3):
                x = embedded[:, position : position + 1]
                logits, cache = model.decode_step(x, cache, jnp.array(position), mask)
                steps.append(logits)
            return jnp.concatenate(steps, axis=1), model.decode(embedded, encoded, mask)

        return model.apply({"params": params}, method=decode)

    by_step, whole = run(params)
    of_floats = run(floats_of(params))
    assert relative(by_step, of_floats[1]) < 1e-5
    assert relative(whole, of_floats[1]) < 1e-5


@pytest.mark.parametrize(
    "version, sizes",
    [("1.1", (2, 2, 2)), pytest.param("1.0", (1, 8, 1), marks=pytest.mark.slow)],
)
def test_a_mesh_computes_what_one_device_does_and_gathers_int8(version, sizes):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "model"), sizes))))
    params = quantize_params(tiny.random_params(SHAPES[version]))
    placed = jax.device_put(params, param_shardings(params, mesh))
    kernel = placed["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert (
        kernel.values.addressable_shards[0].data.nbytes * mesh.shape["fsdp"] * mesh.shape["model"]
        == kernel.values.nbytes
    )
    assert (
        kernel.scales.addressable_shards[0].data.nbytes * mesh.shape["fsdp"] == kernel.scales.nbytes
    )
    sharded = T5(SHAPES[version], mesh=mesh)
    found = value_and_gradient(placed, sharded)
    expected = value_and_gradient(params, T5(SHAPES[version]))
    assert relative(found[0], expected[0]) < 1e-5
    assert relative(found[1], expected[1]) < 1e-5
    prompt = jnp.zeros((3, SHAPE.d_model))
    lowered = jax.jit(functools.partial(output, model=sharded)).lower(prompt, placed)
    gathers = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather\(", lowered.compile().as_text())
    # Matrices are gathered in int8; what else is gathered are scales, of one axis.
    assert {kind for kind, dims in gathers if "," in dims} == {"s8"}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return checkpoints.write_hf(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def base(hf):
    described = convert_backbone(str(hf), hf.parent / "int8", dtype="int8")
    assert described["dtype"] == "int8"
    return hf.parent / "int8"


def assert_same_int8(found, expected):
    expected = dict(named_leaves(expected))
    assert {name for name, _ in named_leaves(found)} == expected.keys()
    for name, leaf in named_leaves(found):
        assert leaf.dtype == expected[name].dtype, name
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(expected[name]), 1e-6, err_msg=name)


def test_int8_by_convert_is_int8_at_load(hf, base):
    original = load_backbone(str(hf))
    expected = quantize_params(jax.tree.map(np.asarray, original.params))
    at_load = load_backbone(str(hf), param_dtype="int8")
    stored = load_backbone(str(base))  # `auto` keeps int8
    for backbone in (at_load, stored, load_backbone(str(base), param_dtype="int8")):
        assert backbone.param_dtype == "int8" and backbone.fingerprint == original.fingerprint
        assert_same_int8(backbone.params, expected)
        assert count_params(backbone.params) == count_params(original.params)
        np.testing.assert_array_equal(
            backbone.embeddings, floats_of(expected)["token_embedder"]["embedding"]
        )
    assert fingerprint(original.params) == original.fingerprint
    assert original.embeddings is original.params["token_embedder"]["embedding"]


def test_int8_on_a_mesh_and_from_a_base_checkpoint_of_floats(hf, base):
    mesh = MeshConfig(data=1, fsdp=4, model=2)
    expected = load_backbone(str(hf), param_dtype="int8").params
    floats = hf.parent / "float32"
    convert_backbone(str(hf), floats)
    for name in (hf, base, floats):
        backbone = load_backbone(str(name), param_dtype="int8", mesh=mesh)
        assert_same_int8(backbone.params, expected)
        shardings = param_shardings(backbone.params, backbone.mesh)
        found = jax.tree.map(lambda leaf: leaf.sharding, backbone.params)
        assert dict(named_leaves(found)) == dict(named_leaves(shardings))


def test_a_base_checkpoint_in_int8_loads_as_floats_too(base):
    wanted = floats_of(load_backbone(str(base)).params)
    found = load_backbone(str(base), param_dtype="float32").params
    for name, leaf in named_leaves(found):
        np.testing.assert_array_equal(leaf, dict(named_leaves(wanted))[name], name)


def test_weights_in_int8_are_not_trained(base, tmp_path):
    with pytest.raises(
        ValueError, match="param_dtype is 'int8' with tune 'model', but int8 weights"
    ):
        tiny.train_config(tmp_path, tune="model", prompt=None, param_dtype="int8")
    with pytest.raises(
        ValueError, match="param_dtype is 'int8' with --tune=model, but int8 weights"
    ):
        PlanConfig(model="t5-v1_1-base", topology="v5e:1x1", tune="model", param_dtype="int8")
    with pytest.raises(
        ValueError, match="int8' has weights in int8, which cannot be trained; give"
    ):
        load_backbone(str(base), tune="model")


def test_a_run_in_int8_says_where_its_prompt_meets_other_weights(tmp_path, capsys):
    config = tiny.train_config(tmp_path, param_dtype="int8")
    result = fit(config, tmp_path / "run")
    assert result["frozen_unchanged"] is True and result["frozen_params"] == 16_624
    assert "all 16,624 frozen parameters are bit-identical" in capsys.readouterr().err
    stored = read_prompt(tmp_path / "run")
    assert stored.metadata["param_dtype"] == "int8"
    note = f"prompt {stored.origin} was trained on weights in int8; here they are float32"
    stored.require_backbone(load_backbone(config.model))
    assert note in capsys.readouterr().err
    assert evaluate_run(tmp_path / "run")["score"] == result["score"]
    assert "trained on weights" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t5-v1_1-base", "t5-v1_1-xl", "t5-v1_1-xxl"])
def test_int8_takes_at_most_0_55_of_the_memory_of_bfloat16(name):
    sizes = {}
    for dtype in ("bfloat16", "int8"):
        config = PlanConfig(model=name, topology="v5e:1x1", param_dtype=dtype)
        model = T5(PRESETS[name], mesh=make_mesh(MeshConfig(data=1)))
        params = abstract_params(model, config)["t5"]
        sizes[dtype] = nbytes(params)
        assert {leaf.dtype for name, leaf in named_leaves(params) if "norm" in name} == {
            jnp.dtype("bfloat16")
        }
    assert sizes["int8"] <= 0.55 * sizes["bfloat16"]


def test_all_matrices_are_quantized_and_nothing_else():
    left = [name for name in leaf_shapes(SHAPE) if not is_matrix(name)]
    assert all("norm/scale" in name or "rel_embedding" in name for name in left) and len(left) == 9
