"""The shape of a T5, and the published shapes by name."""

from dataclasses import dataclass
from typing import Literal

from spt_jax.config.fields import Config, Count, Positive


@dataclass(frozen=True, kw_only=True)
class T5Config(Config, section="T5Config"):
    """The shape of a T5.

    T5 1.0 has a ReLU MLP and a head that is tied to the embedding, with logits scaled by
    d_model**-0.5. T5 1.1 has a gated GELU (tanh) and a head of its own, without a scale.

    Args:
        vocab_size: Rows V of the embedding table.
        d_model: Width D.
        d_kv: Width H of a head; N * H need not be D.
        d_ff: Width F of the MLP.
        num_heads: Number of heads N.
        num_layers: Number of encoder layers.
        num_decoder_layers: Number of decoder layers.
        mlp: `gated_gelu` (1.1) or `relu` (1.0).
        tied_head: Whether the embedding table is the head (1.0).
        relpos_buckets: Number of buckets of the relative position bias.
        relpos_max_distance: Distance from which on all share the last bucket.
        layer_norm_epsilon: Number that is added to the mean square in the RMS norm.

    Raises:
        ValueError: A number is below 1, or `mlp` is unknown.
    """

    vocab_size: Count
    d_model: Count
    d_kv: Count
    d_ff: Count
    num_heads: Count
    num_layers: Count
    num_decoder_layers: Count
    mlp: Literal["gated_gelu", "relu"] = "gated_gelu"
    tied_head: bool = False
    relpos_buckets: Count = 32
    relpos_max_distance: Count = 128
    layer_norm_epsilon: Positive = 1e-6


def _v1_1(d_model: int, d_ff: int, num_heads: int, layers: int) -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_model=d_model,
        d_kv=64,
        d_ff=d_ff,
        num_heads=num_heads,
        num_layers=layers,
        num_decoder_layers=layers,
    )


def _v1_0(d_model: int, d_ff: int, num_heads: int, layers: int, d_kv: int) -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_heads=num_heads,
        num_layers=layers,
        num_decoder_layers=layers,
        mlp="relu",
        tied_head=True,
    )


PRESETS: dict[str, T5Config] = {
    "t5-v1_1-small": _v1_1(512, 1024, 6, 8),
    "t5-v1_1-base": _v1_1(768, 2048, 12, 12),
    "t5-v1_1-large": _v1_1(1024, 2816, 16, 24),
    "t5-v1_1-xl": _v1_1(2048, 5120, 32, 24),
    "t5-v1_1-xxl": _v1_1(4096, 10240, 64, 24),
    "t5-small": _v1_0(512, 2048, 8, 6, 64),
    "t5-base": _v1_0(768, 3072, 12, 12, 64),
    "t5-large": _v1_0(1024, 4096, 16, 24, 64),
    "t5-3b": _v1_0(1024, 16384, 32, 24, 128),
    "t5-11b": _v1_0(1024, 65536, 128, 24, 128),
}
"""Shapes of the published models by name (Raffel et al. 2020; T5 1.1 release notes)."""
