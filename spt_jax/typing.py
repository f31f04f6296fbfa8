"""Array types and the one legend of axis letters, used in annotations, docstrings and einsums.

    B batch    P prompt    T input     S = P + T, what the encoder sees    U target
    D d_model  N heads     H head dim  F mlp     V vocabulary              L layers
    K prompts in a bank

Masks are boolean, True = attend. Arrays of one axis are written `" P"`, as jaxtyping wants.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, UInt

__all__ = ["Array", "Batch", "Bool", "Float", "Int", "Key", "Params", "PyTree", "UInt"]

PyTree = Any
Key = jax.Array
"""A `jax.random.key`."""

Params = Mapping[str, Any]
"""`{"t5": frozen weights, "prompt": f32[P, D]}`; without a prompt there is no `prompt` leaf."""

Batch = Mapping[str, Array]
"""`{"inputs": i32[B, T], "targets": i32[B, U]}`, padded with 0, every row ending in EOS.

Where a row holds several examples, each ends in EOS and `inputs_segments` and `targets_segments`
number them, see `t5.masks.Segments`.
"""
