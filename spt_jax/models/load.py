"""Reads, hashes and casts the leaves of a source one by one, and places them on the devices.

Host memory holds the largest leaf at most, besides what CPU devices themselves keep.
"""

import hashlib
from collections.abc import Iterator

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spt_jax.models.source import Source, blocks
from spt_jax.sharding import param_sharding, param_shardings
from spt_jax.t5.quantize import Quantized, input_axis, is_matrix, quantize
from spt_jax.typing import PyTree


def load_params(
    source: Source, *, param_dtype: str, mesh: Mesh, rest: str = "float32"
) -> tuple[PyTree, str]:
    """Read every leaf of a source.

    Args:
        source: The opened model.
        param_dtype: Dtype of the leaves in memory.
        mesh: Devices that share the leaves.
        rest: Dtype of the leaves that are no matrices if `param_dtype` is `int8`.

    Returns:
        The params, and the fingerprint of the source's weights before the cast.

    Raises:
        ValueError: The mesh does not divide a leaf, a tensor cannot be read or is not finite, or
            the weights have another fingerprint than the source states.
    """
    for name, leaf in source.leaves.items():
        param_sharding(name, leaf.shape, mesh)  # refuses a mesh that does not fit, before any read
    dtype = rest if param_dtype == "int8" else param_dtype
    leaves, reader = {}, Reader(source)
    for name, array in reader:
        leaf = as_stored(name, array, param_dtype)
        if isinstance(leaf, Quantized):
            sharding = param_shardings({name: leaf}, mesh)[name]
            leaves[name] = jax.tree.map(lambda x, where: _place(x, where, x.dtype), leaf, sharding)
        else:
            leaves[name] = _place(leaf, param_sharding(name, leaf.shape, mesh), jnp.dtype(dtype))
        del array, leaf  # to free them before the next one is read
    return flax.traverse_util.unflatten_dict(leaves, sep="/"), reader.fingerprint()


def as_stored(name: str, array: np.ndarray, dtype: str) -> np.ndarray | Quantized:
    """Return a leaf quantized if it is a matrix and `dtype` is `int8`, else as it is."""
    quantized = dtype == "int8" and is_matrix(name)
    return quantize(array, input_axis(name)) if quantized else array


def _place(array: np.ndarray, sharding: jax.sharding.Sharding, dtype: jnp.dtype) -> jax.Array:
    """Return the array on its devices, cut piece by piece.

    `jax.make_array_from_callback` would make all the pieces before it copies one of them.
    """
    pieces = []
    for device, index in sharding.addressable_devices_indices_map(array.shape).items():
        one = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
        pieces.append(jax.device_put(array[index].astype(dtype), one).block_until_ready())
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces, dtype=dtype)


class Reader:
    """Iterates over (name, array) of a source's leaves, sorted by name, and hashes them.

    `fingerprint` returns `pytree.fingerprint` of all leaves; call it after the last leaf.
    """

    def __init__(self, source: Source):
        self._source = source
        self._digest = hashlib.sha256()
        self._done = False

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in sorted(self._source.leaves):
            array = self._source.leaves[name].read()
            self._digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
            for block in blocks(array):
                self._digest.update(block.reshape(-1).view(np.uint8).data)
            yield name, array
            del array
        self._done = True

    def fingerprint(self) -> str:
        """Return the sha256 of the weights, in hex.

        Raises:
            ValueError: The source states another one, so its weights have changed since.
        """
        if not self._done:
            raise RuntimeError("the fingerprint is known after the last leaf")
        found, kept = self._digest.hexdigest(), self._source.fingerprint
        if kept is not None and found != kept:
            raise ValueError(
                f"weights of {self._source.origin} have fingerprint {found[:12]} but its config "
                f"says {kept[:12]}; they were changed or damaged, make or copy the folder again"
            )
        return found
