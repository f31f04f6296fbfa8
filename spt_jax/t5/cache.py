"""The decoder's keys and values from step to step: a plain pytree that callers carry.

Keys and values have the axes [B, N, H, S]. XLA then multiplies few queries with many keys in
place; it would copy arrays of another order at every step. If the layers of the decoder are
unrolled, each has an array of its own, because slices of one array for all would be copied on CPU.
If they are scanned, there is one array for all with a leading axis L.

The past of a beam is a mask. Beam m of a row writes position u into slot u * M + m, and slots never
move. If a beam continues another one, only its row of `ancestors` changes, which says which beam's
slot holds each position of its past. All beams of a row attend to all slots of the row, and the
mask shows them those of their own past.

    axes: M beams, 1 without beam search; otherwise those of `typing`
"""

import jax
import jax.numpy as jnp
from flax import struct

from spt_jax.typing import Array, Bool, Float, Int, PyTree

LAYOUT = "BNHS"
"""Axes of cached keys and values, a `layout` of `Attention`; S are slots, or encoder positions."""


KeysValues = tuple[Array, Array]


@struct.dataclass
class Past:
    """The part of the cache that grows by a target at every step.

    Args:
        own: Keys and values of self-attention, [B, N, H, S] with a slot for each of S = U * M
            targets, filled up to the current step. A pair for each layer, or one pair for all.
        ancestors: The beam that wrote each position of each beam's past.
    """

    own: KeysValues | tuple[KeysValues, ...]
    ancestors: Int[Array, "B M U"]


@struct.dataclass
class Cache:
    """The past, and what is the same in every step. A loop should carry only the past.

    Args:
        past: The part that grows.
        cross: Keys and values of the encoder's output, computed once, also [B, N, H, S].
        layers: The parameters of each layer in the dtype of the activations, matrices in int8 as
            they are, if layers are unrolled; None if they are scanned. They are slices of the
            stacked parameters, so the decoder's layers are in memory twice while it decodes.
            Kernels may be [out, in], see `thresholds.TRANSPOSED_ROWS`.
    """

    past: Past
    cross: KeysValues | tuple[KeysValues, ...]
    layers: tuple[PyTree, ...] | None


def cached(x: Float[Array, "B S N H"]) -> Float[Array, "B N H S"]:
    """Return keys or values in the order of `LAYOUT`."""
    return jnp.transpose(x, (0, 2, 3, 1))


def append(
    past: Float[Array, "B N H S"], new: Float[Array, "B M N H"], position: Int[Array, ""]
) -> Float[Array, "B N H S"]:
    """Write the keys or values of one more position, one for each beam, into their slots."""
    slot = position * new.shape[1]
    return jax.lax.dynamic_update_slice_in_dim(past, cached(new).astype(past.dtype), slot, axis=3)


def append_to_layer(
    past: Float[Array, "L B N H S"],
    new: Float[Array, "B M N H"],
    layer: Int[Array, ""],
    position: Int[Array, ""],
) -> Float[Array, "L B N H S"]:
    """Write them into one layer of a stack, as `append` does."""
    start = (layer, 0, 0, 0, position * new.shape[1])
    return jax.lax.dynamic_update_slice(past, cached(new)[None].astype(past.dtype), start)


def extend(ancestors: Int[Array, "B M U"], position: Int[Array, ""]) -> Int[Array, "B M U"]:
    """Return the ancestors after each beam has written its own slot at `position`."""
    beams = jnp.arange(ancestors.shape[1], dtype=ancestors.dtype)[None, :, None]
    new = jnp.broadcast_to(beams, (*ancestors.shape[:2], 1))
    return jax.lax.dynamic_update_slice_in_dim(ancestors, new, position, axis=2)


def visible(ancestors: Int[Array, "B M U"], position: Int[Array, ""]) -> Bool[Array, "B 1 M S"]:
    """Return the mask of the slots that each beam sees: its past up to `position`."""
    batch, beams, length = ancestors.shape
    seen = (jnp.arange(length) <= position)[None, None, :, None]
    own = ancestors[..., None] == jnp.arange(beams)[None, None, None, :]
    return (own & seen).reshape(batch, 1, beams, length * beams)
