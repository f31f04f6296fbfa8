"""Frozen matrices in int8, with one float32 scale for each output channel.

    matrix[i, o] = values[i, o] * scales[o]          the embedding table: values[v, d] * scales[v]

The scale of a channel is its largest magnitude / 127, so that a weight is off by at most half a
scale. A layer multiplies by the values first and by the scales afterwards (`layers.multiply`), so
that no matrix is stored as floats. Norms and position biases, which are small, stay floats.

Nothing is rounded but the weights. So the gradient of the prompt is that of the quantized model.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spt_jax.pytree import leaf_name
from spt_jax.typing import Array, PyTree

LEVELS = 127
"""Largest value. -128 is not used, so that the range is symmetric."""


@struct.dataclass
class Quantized:
    """A matrix in int8, which stands in a params tree where a float matrix would.

    Args:
        values: int8, with the shape of the matrix; first, because Flax compares the shape of a
            parameter with that of the first array in it.
        scales: float32, with that shape without the axis `input_axis`.
    """

    values: Any
    scales: Any


Kernel = Array | Quantized


def is_matrix(name: str) -> bool:
    """Return whether the parameter of this name is a kernel or the embedding table."""
    return name.split("/")[-1] in ("kernel", "embedding")


def input_axis(name: str) -> int:
    """Return the axis of a matrix that its scales do not have.

    It is the axis [in] of a kernel [in, out]. A row of the embedding table [V, D] is a channel,
    because the tied head uses the table as [out, in].
    """
    return -1 if name.split("/")[-1] == "embedding" else -2


def quantize(matrix: Array | np.ndarray, axis: int) -> Quantized:
    """Return a matrix in int8, on the host if it is a numpy array.

    Args:
        matrix: Finite floats. With a leading axis of layers, each layer has its own scales.
        axis: The axis that the scales do not have, -1 or -2.
    """
    if isinstance(matrix, np.ndarray):
        return _quantize_on_host(matrix, axis)
    return Quantized(*_quantize(jnp, matrix, axis))


def _quantize_on_host(matrix: np.ndarray, axis: int) -> Quantized:
    layers = matrix if matrix.ndim == 3 else matrix[None]
    values = np.empty(layers.shape, np.int8)
    scales = np.empty(np.delete(layers.shape, axis), np.float32)
    for layer, matrix_ in enumerate(layers):  # one by one, for the sake of memory
        values[layer], scales[layer] = _quantize(np, matrix_, axis)
    return Quantized(values, scales) if matrix.ndim == 3 else Quantized(values[0], scales[0])


def _quantize(xp: Any, matrix: Any, axis: int) -> tuple[Any, Any]:
    matrix = matrix.astype(xp.float32)
    scales = xp.max(xp.abs(matrix), axis=axis) / xp.float32(LEVELS)
    # A channel of zeros has no scale, and one below the normal numbers of float32 cannot divide.
    scales = xp.where(scales < np.finfo(np.float32).tiny, xp.float32(1), scales)
    return xp.rint(matrix / xp.expand_dims(scales, axis)).astype(xp.int8), scales


def values_of(matrix: Kernel) -> Array:
    """Return the int8 values of a quantized matrix; a float matrix as it is."""
    return matrix.values if isinstance(matrix, Quantized) else matrix


def dequantize(matrix: Kernel, axis: int) -> Array:
    """Return the float32 matrix that a quantized one stands for; a float matrix as it is."""
    if not isinstance(matrix, Quantized):
        return matrix
    return matrix.values.astype(jnp.float32) * jnp.expand_dims(matrix.scales, axis)


def quantize_params(params: PyTree, rest: Any = jnp.float32) -> PyTree:
    """Return the parameters of a T5 with every matrix in int8.

    Args:
        params: Float parameters.
        rest: Dtype of the leaves that are no matrices.
    """

    def convert(path, leaf):
        name = leaf_name(path)
        return quantize(leaf, input_axis(name)) if is_matrix(name) else leaf.astype(rest)

    return jax.tree_util.tree_map_with_path(convert, params)


def cast_floats(params: PyTree, dtype: Any) -> PyTree:
    """Return the params with all leaves in `dtype` but those of quantized matrices."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, Quantized) else leaf.astype(dtype),
        params,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )
