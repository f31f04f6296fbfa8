"""Chooses the mesh and the dtypes where the user gives none, by the sizes of model and devices.

    weights fit one device           every device has all of them, and rows are spread   data
    they do not fit                  they are cut over as few devices as can hold them   fsdp
    more devices than rows           the other devices share heads and features          model

`fsdp` comes before `model` because it sends each layer's weights once in each pass, while `model`
sends activations twice in every layer.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spt_jax.config.devices import MeshConfig
from spt_jax.errors import choose
from spt_jax.models.names import count_weights
from spt_jax.sharding import make_mesh
from spt_jax.t5 import T5Config

WEIGHTS_SHARE = 0.5
"""Share of a device's memory for weights; the rest is for activations and gathered layers."""

TUNED_BYTES = 16
"""Bytes of a parameter in model tuning: float32 weight, gradient, best weight and slots."""


class Choice(NamedTuple):
    """A mesh, and the reason for it in a few words."""

    mesh: MeshConfig
    reason: str


def resolve_dtype(dtype: str, platform: str) -> jnp.dtype:
    """Return a dtype by name; `auto` is bfloat16 on TPU and GPU, float32 on CPU."""
    if dtype != "auto":
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)


def device_memory(devices: Sequence[Any]) -> int | None:
    """Return the bytes of one device, or None where the device does not tell."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = local[0].memory_stats() if local else None
    return (stats or {}).get("bytes_limit")


def make_suited_mesh(
    given: MeshConfig | None,
    config: T5Config,
    *,
    devices: Sequence[Any],
    memory: int | None,
    weights: jnp.dtype,
    tune: str,
    rows: int | None,
) -> tuple[Mesh, str]:
    """Return the given mesh or the one that `choose_mesh` takes, and the reason in a few words.

    Args:
        given: The user's choice, or None.
        config: Shape of the model.
        devices: All devices.
        memory: Bytes of one device, None if unknown.
        weights: Dtype of a frozen model.
        tune: `model` where the weights will be trained.
        rows: Rows of a batch, None if not known.

    Raises:
        ValueError: See `make_mesh` and `choose_mesh`.
    """
    if given is not None:
        return make_mesh(given, devices), "as given"
    size = choose("tune", tune, {"model": TUNED_BYTES, "prompt": weights.itemsize})
    chosen, reason = choose_mesh(
        config, devices=devices, memory=memory, bytes_per_param=size, rows=rows
    )
    return make_mesh(chosen, devices), reason


def choose_mesh(
    config: T5Config,
    *,
    devices: Sequence[Any],
    memory: int | None,
    bytes_per_param: int,
    rows: int | None = None,
) -> Choice:
    """Return the mesh for a model on these devices.

    Args:
        config: Shape of the model.
        devices: All devices.
        memory: Bytes of one device, None if unknown.
        bytes_per_param: 1, 2 or 4 for a frozen model, `TUNED_BYTES` for one that is tuned.
        rows: Rows of a batch, which data * fsdp must divide; None if not known.

    Raises:
        ValueError: Rows and heads leave devices without work.
    """
    count = len(devices)
    if devices[0].platform == "cpu" and jax.process_count() == 1:
        return Choice(MeshConfig(data=1), "one device: those of a CPU share its cores")
    if count == 1:
        return Choice(MeshConfig(data=1), f"one device: {devices[0].device_kind}")
    spread = math.gcd(count, rows) if rows else count
    model = count // spread
    if config.num_heads % model or config.vocab_size % model or config.d_ff % model:
        raise ValueError(
            f"no mesh of {count} devices suits {rows} rows and {config.num_heads} heads: rows over "
            f"{spread} devices leave {model} for heads; set --data.batch_size to a multiple of "
            f"{count}, or a --mesh.data that leaves devices unused"
        )
    weights = bytes_per_param * count_weights(config)
    size = f"{weights / 2**30:.1f} GiB of weights"
    if memory is None:
        return Choice(
            MeshConfig(data=spread, model=model),
            f"{size}, on devices whose memory is unknown: rows over {spread}, heads over {model}",
        )
    fitting = [
        fsdp
        for fsdp in range(1, spread + 1)
        if spread % fsdp == 0
        and config.d_model % fsdp == 0
        and weights / (fsdp * model) <= WEIGHTS_SHARE * memory
    ]
    fsdp = fitting[0] if fitting else spread
    reason = (
        f"{size}, {memory / 2**30:.1f} GiB on each of {count} {devices[0].device_kind}: "
        f"rows over {spread}, weights over {fsdp * model}"
    )
    return Choice(MeshConfig(data=spread // fsdp, fsdp=fsdp, model=model), reason)
