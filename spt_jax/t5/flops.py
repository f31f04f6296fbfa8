"""The floating point operations of a training step, and the peak of a device.

    W = products with kernels          2 * rows * in * out for each kernel
    A = scores and weighted values     two products for each attention

    forward           W + A
    prompt tuning     2 W + 3 A        no gradient of the frozen kernels
    model tuning      3 W + 3 A

For few targets, cross-attention is counted without keys and values, as `attention.Attention`
computes it. Norms, softmax, dropout and what remat computes again are not counted. Utilisation is
therefore the share of the peak that the model itself needs.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from spt_jax.errors import choose
from spt_jax.t5 import T5Config

PEAK_FLOPS: dict[str, float] = {
    # Of v2, v3 and 7x a device is one core, of the others a chip.
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 operations a second of one jax device, by the beginning of its `device_kind`.

TPU figures are from Google Cloud's page of each version, GPU figures from NVIDIA's data sheets,
without the factor of two for sparse matrices.
"""


def step_flops(
    config: T5Config, batch: Mapping[str, np.ndarray], *, prompt: int, tune: str
) -> float:
    """Count the operations of one training step.

    Args:
        config: Shape of the model.
        batch: `inputs` [B, T] without the prompt, and `targets` [B, U]; padding is computed too.
        prompt: Length P of the prompt, 0 for none.
        tune: `prompt` or `model`.
    """
    rows, inputs = batch["inputs"].shape
    targets = batch["targets"].shape[1]
    c, encoded = config, prompt + inputs
    inner = c.num_heads * c.d_kv
    few = targets < c.d_kv
    projection = 2 * c.d_model * inner
    mlp = choose("mlp", c.mlp, {"gated_gelu": 3, "relu": 2}) * 2 * c.d_model * c.d_ff
    encoder = encoded * (4 * projection + mlp)
    decoder = targets * (6 * projection + mlp) + (targets if few else encoded) * 2 * projection
    head = targets * 2 * c.d_model * c.vocab_size
    weights = c.num_layers * encoder + c.num_decoder_layers * decoder + head
    own = inner * (c.num_layers * encoded**2 + c.num_decoder_layers * targets**2)
    cross = (c.num_heads * c.d_model if few else inner) * c.num_decoder_layers * targets * encoded
    attention = 4 * (own + cross)
    passes = choose("tune", tune, {"model": 3, "prompt": 2})
    return float(rows * (passes * weights + 3 * attention))


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Return the bfloat16 operations a second of all devices, or None if one is not known.

    Args:
        devices: Devices of a mesh.
    """
    peaks = [_peak(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if peaks and len(known) == len(peaks) else None


def _peak(kind: str) -> float | None:
    # A name ends at a space or hyphen: "NVIDIA A100-SXM4-80GB" is an A100, and "A1000" is not.
    names = [name for name in PEAK_FLOPS if f"{kind} ".replace("-", " ").startswith(f"{name} ")]
    return PEAK_FLOPS[max(names, key=len)] if names else None
