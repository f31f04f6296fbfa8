"""A tree of arrays as Flax packs it into MessagePack, decoded by the library `msgpack`.

`flax.serialization.msgpack_restore` would hold a copy of every array at once, and a checkpoint may
hold all of its weights in this one file. So only the place of each array is kept here, and an array
is copied when it is read.

    ExtType 1, 3    an array or a scalar: packed (shape, dtype name, bytes in C order)
    {"__msgpack_chunked_array__": True, "shape": {"0": ..}, "chunks": {"0": ..}}
                    an array of more than 1 GiB, in pieces of the flat array
"""

import functools
import math
import mmap
from typing import Any

import msgpack
import numpy as np

from spt_jax.models.source import Tensor, float_dtype

_ARRAYS = (1, 3)
_INTEGERS = ("int32", "int64", "uint32")
_LIMITS = {"max_array_len": 1 << 16, "max_map_len": 1 << 16}  # msgpack allocates what a list states


def unpack(buffer: bytes | mmap.mmap) -> Any:
    """Return the tree in a buffer: dicts, numbers, text, lists, and a `Tensor` for each array.

    Raises:
        ValueError: The buffer is not one whole MessagePack value of these kinds.
    """
    end = 0

    def array(code: int, data: bytes) -> Tensor:
        nonlocal end
        shape, name, raw = msgpack.unpackb(data, **_LIMITS)
        dtype = np.dtype(name) if name in _INTEGERS else float_dtype(name, "array")
        if code not in _ARRAYS or _size(shape) * dtype.itemsize != len(raw):
            raise ValueError(f"extension {code}: {len(raw)} bytes for an array {shape} of {name}")
        # `data` is a copy of what follows in the buffer, and its bytes are the last part of it.
        end = buffer.find(data, end) + len(data)
        read = functools.partial(_read, buffer, end - len(raw), tuple(shape), dtype)
        return Tensor("", tuple(shape), dtype, read)

    try:
        return msgpack.unpackb(buffer, ext_hook=array, object_pairs_hook=_tree, **_LIMITS)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no valid MessagePack ({error!r})") from None


def _read(
    buffer: bytes | mmap.mmap, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    return np.frombuffer(buffer, dtype, math.prod(shape), start).reshape(shape).copy()


def _tree(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Tensor:
    tree = dict(pairs)
    if len(tree) != len(pairs) or not all(isinstance(key, str) for key in tree):
        raise ValueError("a key is no text or is there twice")
    return _joined(tree) if "__msgpack_chunked_array__" in tree else tree


def _joined(chunked: dict[str, Any]) -> Tensor:
    shape, chunks = chunked["shape"], chunked["chunks"]
    shape = tuple(shape[str(i)] for i in range(len(shape)))
    parts = [chunks[str(i)] for i in range(len(chunks))]
    if _size(shape) != sum(_size(part.shape) for part in parts):
        raise ValueError(f"an array {shape} is in pieces of {[part.shape for part in parts]}")

    def read() -> np.ndarray:
        return np.concatenate([part.read().reshape(-1) for part in parts]).reshape(shape)

    return Tensor("", shape, parts[0].dtype, read)


def _size(shape: Any) -> int:
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has shape {shape}")
    return math.prod(shape)
