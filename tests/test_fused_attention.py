"""Attention as a kernel: equal to plain attention, alone and in a model, and compiled for TPUs."""

import dataclasses
import functools
import importlib.util
import math
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from support import tiny

from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import LossConfig
from spt_jax.forward import encode
from spt_jax.planning import hlo
from spt_jax.planning.topologies import load_topology
from spt_jax.pytree import label_params, split
from spt_jax.sharding import MESH_AXES, make_mesh, param_shardings, place_batch, spec
from spt_jax.step import loss_and_grads
from spt_jax.t5 import T5, attention, thresholds
from spt_jax.t5.fused_attention import fits_kernel, fused_attention
from spt_jax.t5.plain_attention import plain_attention

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; pip install 'spt_jax[tpu-plan]'",
)
LIMITS = {"float32": 1e-6, "bfloat16": 5e-3}


def given(*operands):
    return operands


def draw(rows, length, heads, width, dtype):
    """Queries, keys, values, a bias and a gradient of the result, all rounded to `dtype`."""
    rng = np.random.default_rng(0)  # numpy's, which is not compiled
    small = width**-0.25  # of queries and keys, so that scores are about 1
    arrays = [rng.standard_normal((rows, length, heads, width)) * s for s in (small, small, 1, 1)]
    bias = 2 * rng.standard_normal((1, heads, length, length))
    q, k, v, grads, bias = (jnp.asarray(x, jnp.dtype(dtype)) for x in (*arrays, bias))
    return (q, k, v, bias), grads


def masks(rows, length):
    """A row without padding, and others with more and more, until the last has nothing else."""
    seen = np.round(np.linspace(length, 0, rows)).astype(int)
    return (np.arange(length) < seen[:, None])[:, None, None]


def keeps(rows, heads, length):
    drawn = np.random.default_rng(1).random((rows, heads, 1, length)) < 0.7
    return drawn / 0.7


def relative_error(found, expected):
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


CASES = [  # dtype, heads, width, length, dropout; the wide grid is slow
    ("float32", 3, 64, 20, True),  # the last block has one head and not two
    ("bfloat16", 2, 128, 24, False),
    *(
        pytest.param(dtype, heads, width, length, dropout, marks=pytest.mark.slow)
        for dtype in LIMITS
        for heads, width in ((1, 64), (2, 64), (5, 64), (12, 64), (3, 128), (4, 32), (2, 8))
        for length in (64, 100, 152)
        for dropout in (False, True)
    ),
]


@pytest.mark.parametrize("dtype, heads, width, length, dropout", CASES)
def test_the_kernel_equals_plain_attention_in_float64(dtype, heads, width, length, dropout):
    rows = 3
    arrays, grads = draw(rows, length, heads, width, dtype)
    mask = masks(rows, length)
    keep = keeps(rows, heads, length) if dropout else None

    def fused(q, k, v, bias):
        dropped = None if keep is None else jnp.asarray(keep, dtype)
        return fused_attention(
            Partial(given), (q, k, v), bias, mask, dropped, mesh=None, interpret=True
        )

    def plain(q, k, v, bias):
        dropped = None if keep is None else jnp.asarray(jnp.asarray(keep, dtype), q.dtype)
        return plain_attention(q, k, v, bias, mask, keep=dropped)

    def run(attend, arrays, grads):
        result, pull = jax.vjp(attend, *arrays)
        return result, *pull(grads)

    found = jax.jit(functools.partial(run, fused))(arrays, grads)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (arrays, grads))
        expected = jax.jit(functools.partial(run, plain))(*wide)
    assert [x.dtype for x in found] == [jnp.dtype(dtype)] * 5
    errors = [relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    assert max(errors) < LIMITS[dtype], errors
    # Queries of the row of padding alone have no gradient, because no key is seen.
    assert not np.any(found[1][-1]) and not np.any(found[2][-1])


SHAPE = dataclasses.replace(tiny.SHAPE, num_heads=3)
BATCH = {
    "inputs": np.array([[5, 6, 7, 8, 9, 4, 3, 0, 0], [9, 8, 7, 6, 5, 4, 3, 2, 1]] * 2, np.int32),
    "targets": np.array([[3, 4], [5, 0]] * 2, np.int32),
}


def grads_of(model, params, tune, **options):
    """Cut params into trained leaves and a function of them, a batch and a key: the gradients."""
    trained, frozen = split(params, label_params(params, tune))
    options |= dict(model=model, loss=LossConfig())

    def run(trained, batch, key):
        return loss_and_grads(trained, frozen, batch, key, **options)[1]

    return trained, run


@pytest.mark.slow
def test_prompts_of_several_runs_have_the_gradient_of_the_plain_path(monkeypatch):
    """Mapped over two prompts, in scanned layers that project again, with dropout, in two parts."""
    monkeypatch.setattr(thresholds, "UNROLLED_ON_CPU", 1)
    shape = dataclasses.replace(SHAPE, num_layers=2)
    prompts = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32)
    params = {"t5": tiny.random_params(shape), "prompt": prompts}
    batch = {name: np.stack([x, x[::-1]]) for name, x in BATCH.items()}
    keys = jax.random.split(jax.random.key(0), 2)

    def grads(version):
        model = T5(shape, dropout_rate=0.3, remat="light", attention=version)
        trained, run = grads_of(model, params, "prompt", accumulate=2)
        return jax.jit(jax.vmap(run))(trained, batch, keys)["prompt"]

    fused, plain = grads("fused"), grads("plain")
    assert np.linalg.norm(plain[0] - plain[1]) > 0.1 * np.linalg.norm(plain)
    assert relative_error(fused, plain) < 1e-5


def test_on_a_mesh_every_weight_has_the_gradient_of_the_plain_path():
    shape = dataclasses.replace(SHAPE, num_heads=2)
    params = {"t5": tiny.random_params(shape)}

    def grads(version, mesh):
        trained, run = grads_of(T5(shape, attention=version, mesh=mesh), params, "model")
        if mesh is not None:
            trained = {"t5": jax.device_put(trained["t5"], param_shardings(trained["t5"], mesh))}
        return jax.jit(run)(trained, place_batch(BATCH, mesh), jax.random.key(0))["t5"]

    fused = grads("fused", make_mesh(MeshConfig(data=2, fsdp=2, model=2)))
    errors = jax.tree.map(relative_error, fused, grads("plain", None))
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


def kernels(jaxpr):
    """Names and numbers of results of all kernels in a traced program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"], len(equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from kernels(getattr(inner, "jaxpr", inner))


def kernels_of_model(tune, layers=1, batch=BATCH, **options):
    """The kernels in the gradient of a model."""
    shape = dataclasses.replace(SHAPE, num_layers=layers)
    params = {"t5": tiny.random_params(shape)}
    if tune == "prompt":
        params["prompt"] = np.zeros((3, 16), np.float32)
    trained, run = grads_of(T5(shape, **options), params, tune)
    return list(kernels(jax.make_jaxpr(run)(trained, batch, jax.random.key(0)).jaxpr))


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_the_bias_has_a_gradient_only_where_it_is_trained(monkeypatch, remat):
    monkeypatch.setattr(thresholds, "UNROLLED_ON_CPU", 1)
    for tune, results in (("prompt", 3), ("model", 4)):
        found = kernels_of_model(tune, layers=2, attention="fused", remat=remat)
        assert dict(found) == {"t5_attention": 2, "t5_attention_backward": results}


def test_packed_rows_and_other_choices_run_no_kernel():
    segments = {f"{name}_segments": np.minimum(x, 1) for name, x in BATCH.items()}
    assert kernels_of_model("model", attention="fused")
    assert not kernels_of_model("model", attention="fused", batch=BATCH | segments)
    assert not kernels_of_model("model", attention="auto")  # on CPU


def test_an_unknown_version_is_refused():
    message = "attention is 'flash', expected one of auto, plain, fused"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(T5(SHAPE, attention="flash").init_params, jax.random.key(0))


FITTING = dict(rows=4, length=616, heads=12, width=64, dtype="bfloat16", kind="TPU v5 lite")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"length": 1152, "dtype": "float32"}, True),
        ({"length": 1160}, False),  # longer than a kernel is compiled for
        ({"kind": "TPU v4"}, True),
        ({"kind": "TPU v4", "dtype": "float32"}, False),  # VMEM of 16 MiB
        ({"kind": "TPU v3"}, False),
        ({"kind": "cpu"}, False),
        ({"heads": 3}, True),
        ({"width": 128}, True),
        ({"width": 96}, False),  # two heads are wider than a register, one does not fill it
        ({"dtype": "float16"}, False),
        ({"mask": (1, 1, 616, 616)}, False),
        ({"bias": (4, 12, 616, 616)}, False),
        ({"bias": None}, False),
        ({"keys": 8}, False),
        ({"mesh": (2, 1, 4)}, True),
        ({"mesh": (8, 1, 1)}, False),  # rows
        ({"mesh": (1, 1, 8)}, False),  # heads
    ],
)
def test_what_fits_the_kernel(changes, expected):
    c = dict(FITTING, **changes)
    queries = jax.ShapeDtypeStruct((c["rows"], c["length"], c["heads"], c["width"]), c["dtype"])
    keys = jax.ShapeDtypeStruct(
        (c["rows"], c.get("keys", c["length"]), *queries.shape[2:]), c["dtype"]
    )
    square = c["length"], c["length"]
    bias, mask = (
        c.get("bias", (1, c["heads"], *square)),
        c.get("mask", (c["rows"], 1, 1, c["length"])),
    )
    mesh = _Mesh(c["kind"], *c.get("mesh", (1, 1, 1)))
    found = fits_kernel(
        queries,
        keys,
        None if bias is None else jax.ShapeDtypeStruct(bias, c["dtype"]),
        jax.ShapeDtypeStruct(mask, bool),
        "BSNH",
        mesh,
        interpret=False,
    )
    assert found is expected


class _Mesh:
    """The parts of a mesh that decide whether a kernel fits."""

    def __init__(self, kind, *sizes):
        device = types.SimpleNamespace(platform="tpu", device_kind=kind)
        self.shape = dict(zip(MESH_AXES, sizes))
        self.devices = np.array([device])


def test_inputs_are_padded_only_for_the_kernel():
    assert attention.padded_length(612, "fused", None) == 616
    assert attention.padded_length(616, "fused", None) == 616
    assert attention.padded_length(612, "auto", None) == 612  # on CPU
    params = {"t5": tiny.random_params(SHAPE), "prompt": jnp.zeros((3, 16))}
    for version, length in (("plain", 12), ("fused", 16)):
        model = T5(SHAPE, attention=version)
        encoded, mask = jax.eval_shape(functools.partial(encode, model), params, BATCH["inputs"])
        assert encoded.shape == (4, length, 16) and mask.shape == (4, length)


def compile_attention(topology, mesh, shape, *, of_bias=False, prompts=None):
    """Compile the forward and the backward pass of attention for `shape`, [B, S, N, H].

    With `prompts` they are mapped over so many prompts, each with rows of its own.
    """
    _, devices = load_topology(topology)
    mesh = make_mesh(mesh, devices[: math.prod(vars(mesh).values())])
    rows, length, heads, _ = shape

    def abstract(shape, axes, dtype=jnp.bfloat16):
        if prompts and axes[0] == "B":
            shape, axes = (prompts, *shape), f".{axes}"
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(axes)))

    def run(q, k, v, bias, mask, grads):
        assert fits_kernel(q, k, bias, mask, "BSNH", mesh, interpret=False)

        def attend(q, k, v, bias):
            options = dict(mesh=mesh, interpret=False)
            return fused_attention(Partial(given), (q, k, v), bias, mask, None, **options)

        if of_bias:
            return jax.vjp(attend, q, k, v, bias)[1](grads)
        return jax.vjp(functools.partial(attend, bias=bias), q, k, v)[1](grads)

    q = abstract(shape, "BSNH")
    bias = abstract((1, heads, length, length), "1NTS")
    mask = abstract((rows, 1, 1, length), "B11S", jnp.bool)
    if prompts:
        run = jax.vmap(run, in_axes=(0, 0, 0, None, 0, 0))
    return jax.jit(run).lower(q, q, q, bias, mask, q).compile()


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("of_bias", [False, True])
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_the_kernels_compile_for_a_chip(topology, of_bias):
    shape = 2, 616, 12, 64
    compiled = compile_attention(topology, MeshConfig(data=1), shape, of_bias=of_bias)
    assert compiled.as_text().count('"tpu_custom_call"') == 2


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1152, 2, 64), (1, 1152, 1, 128), (2, 616, 3, 64)])
def test_the_longest_rows_and_odd_heads_compile(shape):
    compile_attention("v5e:1x1", MeshConfig(data=1), shape, of_bias=True)


@needs_libtpu
@pytest.mark.parametrize("prompts", [None, 2])
def test_on_a_mesh_of_tpus_no_collective_is_inside_attention(prompts):
    shape = rows, length, heads, width = 8, 72, 12, 64
    mesh = MeshConfig(data=2, fsdp=1, model=4)
    compiled = compile_attention("v5e:2x4", mesh, shape, prompts=prompts)
    assert not hlo.count(compiled.as_text()).collectives
    # A device has half of the rows and a quarter of the heads. Each head of a row has two products
    # in the forward pass and five in the backward pass.
    products = 7 * (prompts or 1) * (rows // 2) * (heads // 4) * 2 * length**2 * width
    assert compiled.cost_analysis()["flops"] == pytest.approx(products, rel=0.02)
