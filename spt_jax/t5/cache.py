"""What decoding keeps from step to step: a plain pytree that callers carry.

Keys and values lie as [B, N, H, ...]: few queries against many keys are then one product that XLA
runs on the array where it is, and the other orders are copied at every step. Where the layers of
the decoder are unrolled there is one array for each of them, since slices of an array over layers
would be copied on CPU; where they are scanned, one array for all, with a leading axis L.

A beam's past is a mask. Beam m of a row writes position u into slot u * M + m, which never moves;
what moves when a beam goes on from another is a row of `ancestors`, which says whose slot holds
each position of its past. All beams of a row attend to all its slots, and see their own.

    axes: M beams, 1 where there is no search; otherwise those of `typing`
"""

import jax
import jax.numpy as jnp
from flax import struct

from spt_jax.typing import Array, Bool, Float, Int, PyTree

LAYOUT = "BNHS"
"""Axes of cached keys and values, as `Attention` takes them; S are slots, or encoder positions."""


KeysValues = tuple[Array, Array]


@struct.dataclass
class Past:
    """What grows by a target at every step.

    Args:
        own: Self-attention keys and values, [B, N, H, S] with a slot for each of S = U * M targets,
            filled up to the current step: a pair for each layer, or one pair of all.
        ancestors: The beam that wrote each position of each beam's past.
    """

    own: KeysValues | tuple[KeysValues, ...]
    ancestors: Int[Array, "B M U"]


@struct.dataclass
class Cache:
    """The past, and what is the same in every step: leave that out of a loop's state.

    Args:
        past: What grows.
        cross: Keys and values of the encoder's output, computed once, likewise [B, N, H, S].
        layers: The parameters of each layer where layers are unrolled, in the dtype of the
            activations. They are slices of the stacked leaves, made once: the layers of the decoder
            are in memory twice while it decodes. Kernels may be [out, in], see `model.TURNED_ROWS`.
            None where layers are scanned.
    """

    past: Past
    cross: KeysValues | tuple[KeysValues, ...]
    layers: tuple[PyTree, ...] | None


def cached(x: Float[Array, "B S N H"]) -> Float[Array, "B N H S"]:
    """Keys or values in the order of `LAYOUT`."""
    return jnp.transpose(x, (0, 2, 3, 1))


def append(
    past: Float[Array, "B N H S"], new: Float[Array, "B M N H"], position: Int[Array, ""]
) -> Float[Array, "B N H S"]:
    """Keys or values with those of one more position, one for each beam."""
    slot = position * new.shape[1]
    return jax.lax.dynamic_update_slice_in_dim(past, cached(new).astype(past.dtype), slot, axis=3)


def append_to_layer(
    past: Float[Array, "L B N H S"],
    new: Float[Array, "B M N H"],
    layer: Int[Array, ""],
    position: Int[Array, ""],
) -> Float[Array, "L B N H S"]:
    """The same in one layer of a stack."""
    start = (layer, 0, 0, 0, position * new.shape[1])
    return jax.lax.dynamic_update_slice(past, cached(new)[None].astype(past.dtype), start)


def extend(ancestors: Int[Array, "B M U"], position: Int[Array, ""]) -> Int[Array, "B M U"]:
    """The ancestors where each beam writes its own slot at `position`."""
    beams = jnp.arange(ancestors.shape[1], dtype=ancestors.dtype)[None, :, None]
    new = jnp.broadcast_to(beams, (*ancestors.shape[:2], 1))
    return jax.lax.dynamic_update_slice_in_dim(ancestors, new, position, axis=2)


def visible(ancestors: Int[Array, "B M U"], position: Int[Array, ""]) -> Bool[Array, "B 1 M S"]:
    """Which slots each beam sees: those of its past up to `position`."""
    batch, beams, length = ancestors.shape
    seen = (jnp.arange(length) <= position)[None, None, :, None]
    own = ancestors[..., None] == jnp.arange(beams)[None, None, None, :]
    return (own & seen).reshape(batch, 1, beams, length * beams)
