"""The mesh, the table of cuts, and that a step over many devices is the step of one."""

import dataclasses
import functools
import itertools
import math
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import LossConfig, OptimizerConfig
from spt_jax.models.automesh import TUNED_BYTES, choose_mesh, device_memory, resolve_dtype
from spt_jax.models.backbone import load_backbone
from spt_jax.models.names import leaf_shapes
from spt_jax.optim import make_tx
from spt_jax.pytree import label_params, named_leaves, split
from spt_jax.runs.log import read_log
from spt_jax.sharding import (
    RULES,
    make_mesh,
    param_sharding,
    param_shardings,
    place_batch,
    require_rows,
    spreadable_rows,
    state_shardings,
)
from spt_jax.step import train_step
from spt_jax.t5 import PRESETS, T5, thresholds
from spt_jax.train import fit
from spt_jax.train_state import init_state

AXES = ("data", "fsdp", "model")
SHAPE = dataclasses.replace(tiny.SHAPE, num_heads=8, num_layers=2)
VERSIONS = {"1.1": SHAPE, "1.0": dataclasses.replace(SHAPE, mlp="relu", tied_head=True)}
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(sizes) == 8]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def setup(version):
    """Params with a prompt, and a batch with rows of different lengths."""
    rng = np.random.default_rng(0)
    shape = VERSIONS[version]
    params = {
        "t5": jax.tree.map(lambda x: np.asarray(x, np.float64), tiny.random_params(shape)),
        "prompt": rng.standard_normal((3, shape.d_model)),
    }
    ids, lengths = rng.integers(3, shape.vocab_size, (16, 12)), rng.integers(1, 13, 16)
    batch = {
        "inputs": np.where(np.arange(12) < lengths[:, None], ids, 0).astype(np.int32),
        "targets": rng.integers(1, shape.vocab_size, (16, 3)).astype(np.int32),
    }
    return params, batch


def ten_steps(version, mesh, remat, accumulate):
    """Ten steps of SGD: their losses, the prompt after the first and the last, the state.

    In float64: in float32, sums in another order already differ by 1e-5 after ten steps.
    """
    params, batch = setup(version)
    tx = make_tx(OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.5), 10, "prompt")
    trained, frozen = split(params, label_params(params, "prompt"))
    state = init_state(jax.tree.map(jnp.array, trained), tx, patience=None, keep_best=False)
    out_shardings = None
    if mesh is not None:
        weights = params["t5"]
        frozen = {**frozen, "t5": jax.device_put(weights, param_shardings(weights, mesh))}
        state = jax.device_put(state, state_shardings(state, mesh))
        batch = place_batch(batch, mesh)
        out_shardings = (state_shardings(state, mesh), None)
    step = jax.jit(
        functools.partial(
            train_step,
            model=T5(VERSIONS[version], dtype=jnp.float64, remat=remat, mesh=mesh),
            tx=tx,
            loss=LossConfig(reduction="mean"),
            accumulate=accumulate,
        ),
        donate_argnums=0,
        out_shardings=out_shardings,
    )
    losses, prompts = [], []
    for _ in range(10):
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
        prompts.append(np.asarray(state.trained["prompt"]))
    return losses, prompts[0], prompts[-1], state


on_one_device = functools.cache(functools.partial(ten_steps, mesh=None, remat="none", accumulate=1))

REMATS = ("none", "light", "minimal", "full")
CASES = [  # one axis, and all three; then every axis and policy, and the meshes of two axes
    ("1.1", (1, 1, 8), "full", 1, "unrolled"),
    ("1.0", (2, 2, 2), "none", 2, "scanned"),
    pytest.param("1.1", (8, 1, 1), "light", 2, "unrolled", marks=pytest.mark.slow),
    pytest.param("1.0", (1, 8, 1), "minimal", 1, "scanned", marks=pytest.mark.slow),
    pytest.param("1.0", (1, 2, 4), "light", 1, "unrolled", marks=pytest.mark.slow),
    pytest.param("1.1", (1, 4, 2), "minimal", 2, "unrolled", marks=pytest.mark.slow),
    pytest.param("1.0", (2, 1, 4), "none", 1, "unrolled", marks=pytest.mark.slow),
    pytest.param("1.1", (2, 4, 1), "light", 2, "scanned", marks=pytest.mark.slow),
    pytest.param("1.0", (4, 1, 2), "full", 2, "unrolled", marks=pytest.mark.slow),
    pytest.param("1.1", (4, 2, 1), "none", 1, "scanned", marks=pytest.mark.slow),
]
if os.environ.get("SPT_JAX_ALL_MESHES"):
    CASES = list(itertools.product(VERSIONS, MESHES, REMATS, (1, 2), ("unrolled", "scanned")))


def test_the_cases_have_every_mesh():
    assert {getattr(case, "values", case)[1] for case in CASES} == {*MESHES}


@pytest.mark.parametrize("version, sizes, remat, accumulate, layers", CASES)
@pytest.mark.usefixtures("float64")
def test_every_mesh_takes_the_steps_of_one_device(
    version, sizes, remat, accumulate, layers, monkeypatch
):
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, sizes))))
    plain_losses, plain_first, plain_last, _ = on_one_device(version)
    monkeypatch.setattr(thresholds, "UNROLLED_ON_CPU", 12 if layers == "unrolled" else 0)
    losses, first, last, state = ten_steps(version, mesh, remat, accumulate)
    start = np.asarray(setup(version)[0]["prompt"])
    step, whole = np.abs(plain_first - start).max(), np.abs(plain_last - start).max()
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-9)
    # The first step is the gradient times the rate.
    np.testing.assert_allclose((first - start) / step, (plain_first - start) / step, atol=1e-9)
    np.testing.assert_allclose((last - start) / whole, (plain_last - start) / whole, atol=1e-9)
    assert losses[-1] < losses[0] - 0.01
    for _, leaf in named_leaves(state):  # a prompt and its slots are equal on all devices
        assert leaf.sharding.is_fully_replicated and len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)


def test_weights_are_kept_in_parts():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    weights = setup("1.1")[0]["t5"]
    for name, leaf in named_leaves(jax.device_put(weights, param_shardings(weights, mesh))):
        parts = leaf.size // leaf.addressable_shards[0].data.size
        assert parts == (1 if name.endswith("scale") else 2 if "relpos" in name else 4), name


def test_a_tuned_model_is_cut_like_a_frozen_one_and_so_are_its_slots():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    params = {"t5": tiny.random_params(SHAPE)}
    tx = make_tx(OptimizerConfig(name="adam", learning_rate=0.1), 10, "model")
    state = init_state(params, tx, patience=None, keep_best=True)
    shardings = state_shardings(state, mesh)
    expected = dict(named_leaves(param_shardings(params["t5"], mesh)))
    found = [(name, leaf) for name, leaf in named_leaves(shardings) if "/t5/" in name]
    assert len(found) == 4 * len(expected)  # weights, best weights, two moments
    for name, sharding in found:
        assert sharding == expected[name.rpartition("/t5/")[2]], name
    # Adafactor's factored slots of a large matrix are whole.
    tx = make_tx(OptimizerConfig(), 10, "model")
    large = {"t5": {"token_embedder": {"embedding": jnp.zeros((256, 128))}}}
    shardings = state_shardings(init_state(large, tx, patience=None, keep_best=False), mesh)
    cut = {name: not sharding.is_fully_replicated for name, sharding in named_leaves(shardings)}
    found = [name for name, is_cut in cut.items() if is_cut]
    assert found == ["trained/t5/token_embedder/embedding"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_has_a_rule_in_every_published_shape(name):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    shapes = leaf_shapes(PRESETS[name])
    kept = [param_sharding(leaf, shape, mesh).shard_shape(shape) for leaf, shape in shapes.items()]
    whole, part = (sum(map(math.prod, sizes)) for sizes in (shapes.values(), kept))
    assert whole / 8 <= part < whole / 7.9


def test_every_rule_is_of_a_parameter():
    names = {*leaf_shapes(PRESETS["t5-small"]), *leaf_shapes(PRESETS["t5-v1_1-small"])}
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_a_leaf_without_a_rule_or_with_two_is_refused(monkeypatch):
    mesh = make_mesh(MeshConfig(data=1))
    with pytest.raises(ValueError, match="^parameter encoder/new has 0 rules of sharding"):
        param_shardings({"encoder": {"new": jnp.zeros(2)}}, mesh)
    with pytest.raises(ValueError, match=r"has shape \[2\] but its rule .* has the 3 axes LDF$"):
        param_sharding("encoder/layers/mlp/wi/kernel", (2,), mesh)
    monkeypatch.setattr("spt_jax.sharding.RULES", (*RULES, ("encoder/.*", "LDF")))
    with pytest.raises(ValueError, match="^parameter encoder/layers/mlp/wi/kernel has 2 rules"):
        param_sharding("encoder/layers/mlp/wi/kernel", (2, 4, 4), mesh)


def test_a_mesh_that_does_not_divide_the_model_says_what_would(tmp_path):
    config = tiny.train_config(tmp_path)
    message = "mesh axis 'model' \\(4\\) does not divide heads 2 of .*; use model=1 or 2"
    with pytest.raises(ValueError, match=message):
        load_backbone(config.model, mesh=MeshConfig(data=2, model=4))
    message = "mesh axis 'fsdp' \\(3\\) does not divide d_model 16 of .*; use fsdp=1, 2, 4, 8 or 16"
    with pytest.raises(ValueError, match=message):
        load_backbone(config.model, mesh=MeshConfig(data=1, fsdp=3))


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    assert make_mesh(MeshConfig(fsdp=2)).shape == {"data": 4, "fsdp": 2, "model": 1}
    assert make_mesh(MeshConfig(data=1, model=2)).size == 2
    with pytest.raises(
        ValueError,
        match=r"^mesh data=2 fsdp=1 model=8 needs 16 devices but there are 8 \(cpu\); change",
    ):
        make_mesh(MeshConfig(data=2, model=8))
    with pytest.raises(
        ValueError,
        match="mesh data=-1 fsdp=3 model=1 does not divide the number of devices, 8 .* to 3,",
    ):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="mesh.data is 0, expected 1 or more, or -1"):
        MeshConfig(data=0)
    with pytest.raises(ValueError, match="mesh.data and mesh.model are -1, expected at most one"):
        MeshConfig(data=-1, model=-1)


def test_rows_are_spread_evenly():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    require_rows(mesh, 8, "data.batch_size")
    with pytest.raises(
        ValueError,
        match=r"^data.batch_size 6 does not divide over data \* fsdp = 4 of the mesh data=2 fsdp=2",
    ):
        require_rows(mesh, 6, "data.batch_size")
    assert [spreadable_rows(mesh, rows) for rows in (1, 4, 5)] == [4, 4, 8]
    assert spreadable_rows(None, 5) == 5
    batch = place_batch({"inputs": np.arange(8).reshape(4, 2)}, mesh)
    assert {shard.data.shape for shard in batch["inputs"].addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(batch["inputs"], np.arange(8).reshape(4, 2))


@pytest.mark.slow
def test_a_run_goes_on_over_other_devices(tmp_path):
    """Trained on eight devices, then on four, it is the run of one."""
    sgd = {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.01), "dropout_rate": 0.0}

    def run(name, steps, mesh):
        config = tiny.train_config(tmp_path, **sgd, steps=steps, mesh=MeshConfig(**mesh))
        return fit(config, tmp_path / name)

    run("moved", 6, {"fsdp": 4, "model": 2})
    moved = run("moved", 12, {"data": 2, "model": 2})
    alone = run("alone", 12, {"data": 1})
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("moved", "alone")]
    losses, expected = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert len(expected) == 12
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert moved["frozen_unchanged"] and moved["score"] == alone["score"]


def devices(count, platform="tpu", memory=None):
    stats = memory and {"bytes_limit": memory}
    one = SimpleNamespace(
        platform=platform, device_kind="TPU v5 lite", process_index=0, memory_stats=lambda: stats
    )
    return [one] * count


GIB = 2**30


@pytest.mark.parametrize(
    "model, count, memory, rows, expected, reason",
    [
        ("base", 1, 16, 32, (1, 1, 1), "one device: TPU v5 lite"),
        (
            "base",
            8,
            16,
            32,
            (8, 1, 1),
            "0.5 GiB of weights, 16.0 GiB on each of 8 TPU v5 lite",
        ),
        ("xxl", 8, 16, 32, (2, 4, 1), "20.7 GiB of weights"),
        ("xxl", 64, 16, 32, (16, 2, 2), "rows over 32, weights over 4"),
        ("xl", 8, 16, 2, (2, 1, 4), "rows over 2, weights over 4"),
        ("xl", 8, None, 32, (8, 1, 1), "whose memory is unknown: rows over 8, heads over 1"),
    ],
)
def test_the_mesh_is_chosen_by_size(model, count, memory, rows, expected, reason):
    choice = choose_mesh(
        PRESETS[f"t5-v1_1-{model}"],
        devices=devices(count),
        memory=memory and memory * GIB,
        bytes_per_param=2,
        rows=rows,
    )
    assert tuple(getattr(choice.mesh, axis) for axis in AXES) == expected
    assert reason in choice.reason


def test_a_tuned_model_takes_more_devices():
    sizes = {"devices": devices(8), "memory": 16 * GIB, "rows": 32}
    config = PRESETS["t5-v1_1-large"]
    assert choose_mesh(config, bytes_per_param=2, **sizes).mesh == MeshConfig(data=8)
    assert choose_mesh(config, bytes_per_param=TUNED_BYTES, **sizes).mesh.fsdp == 2


def test_devices_without_work_are_an_error():
    with pytest.raises(
        ValueError,
        match="^no mesh of 8 devices suits 1 rows and 6 heads: rows over 1 devices leave 8",
    ):
        choose_mesh(
            PRESETS["t5-v1_1-small"], devices=devices(8), memory=None, bytes_per_param=2, rows=1
        )


def test_devices_say_what_they_have():
    assert device_memory(devices(2, memory=5)) == 5
    assert device_memory(devices(2)) is None
    assert resolve_dtype("auto", "cpu") == jnp.float32
    assert resolve_dtype("auto", "tpu") == resolve_dtype("bfloat16", "cpu") == jnp.bfloat16
