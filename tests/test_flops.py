"""The operations of a step by formula, beside XLA's own count, and what devices can do."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from spt_jax.config.train import LossConfig
from spt_jax.step import loss_and_grads
from spt_jax.t5 import T5, T5Config
from spt_jax.t5.flops import peak_flops, step_flops


@pytest.mark.parametrize(
    "mlp, tied_head, targets, tune",
    [
        ("gated_gelu", False, 24, "prompt"),
        ("gated_gelu", False, 24, "model"),
        ("relu", True, 80, "prompt"),
    ],
)
def test_the_formula_is_what_xla_counts(mlp, tied_head, targets, tune):
    # Large enough that products are nearly all, traced and not compiled; four layers are unrolled,
    # and XLA counts the body of a loop once.
    config = T5Config(
        vocab_size=2048,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_heads=6,
        num_layers=4,
        num_decoder_layers=3,
        mlp=mlp,
        tied_head=tied_head,
    )
    model = T5(config)
    t5 = jax.eval_shape(model.init_params, jax.random.key(0))
    params = {"t5": t5, "prompt": jax.ShapeDtypeStruct((20, 512), jnp.float32)}
    nothing = jax.tree.map(lambda _: None, params)
    trained = params if tune == "model" else params | {"t5": nothing["t5"]}
    frozen = nothing if tune == "model" else nothing | {"t5": t5}
    ids = {"inputs": (4, 108), "targets": (4, targets)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in ids.items()}
    step = jax.jit(functools.partial(loss_and_grads, model=model, loss=LossConfig()))
    counted = step.lower(trained, frozen, batch, jax.random.key(0)).cost_analysis()["flops"]
    expected = step_flops(config, batch, prompt=20, tune=tune)
    assert expected == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v3", 61.5e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
    ],
)
def test_peaks_go_by_the_longest_name_that_a_kind_begins_with(kind, peak):
    assert peak_flops([SimpleNamespace(device_kind=kind)]) == peak


def test_the_peak_of_a_mesh_is_the_sum_and_unknown_where_one_device_is():
    v4, cpu = SimpleNamespace(device_kind="TPU v4"), SimpleNamespace(device_kind="cpu")
    assert peak_flops([v4, v4]) == 550e12
    assert peak_flops([v4, cpu]) is None
