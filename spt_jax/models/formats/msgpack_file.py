"""A tree of arrays as Flax packs it into MessagePack, opened without reading the arrays.

`flax.serialization.msgpack_restore` copies every array of the file at once, and a checkpoint may
hold all of its weights in this one file. So `msgpack` decodes here what lies around the arrays, and
the place of each array is noted for later.

    ExtType 1, 3    an array or a scalar: packed (shape, dtype name, bytes in C order)
    {"__msgpack_chunked_array__": True, "shape": {"0": ..}, "chunks": {"0": ..}}
                    an array of more than 1 GiB, in pieces of the flat array
"""

import functools
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import msgpack
import numpy as np

from spt_jax.models.source import Tensor, float_dtype

_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}  # first byte -> bytes of the length behind it
_ARRAYS = (1, 3)  # codes of an array and of a numpy scalar, which is packed likewise
_BYTES = {b"\xc4": 2, b"\xc5": 3, b"\xc6": 5}  # first byte of bytes -> size of their head
_INTEGERS = ("int32", "int64", "uint32")
_MAX_BYTES = 1 << 20  # of a value that is no array
_MAX_DEPTH = 64


Opener = Callable[[], BinaryIO]


def unpack(opener: Opener) -> Any:
    """Return the tree in a file: dicts, numbers, text, lists, and a `Tensor` for each array.

    Args:
        opener: Opens the file; called once here, and again whenever a tensor is read.

    Raises:
        ValueError: The file is not one whole MessagePack value of these kinds.
    """
    try:
        with opener() as file:
            value, end = _read(opener, file, 0, 0)
            size = file.seek(0, 2)
    except (msgpack.UnpackException, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no valid MessagePack ({error!r})") from None
    if end != size:
        raise ValueError(f"{size - end} bytes behind the MessagePack value")
    return value


def _unpacker(file: BinaryIO, at: int) -> msgpack.Unpacker:
    file.seek(at)
    limits = {"max_array_len": _MAX_BYTES, "max_map_len": _MAX_BYTES}
    return msgpack.Unpacker(file, read_size=512, max_buffer_size=_MAX_BYTES, **limits)


def _read(opener: Opener, file: BinaryIO, at: int, depth: int) -> tuple[Any, int]:
    """Return the value that starts at a byte, and the byte behind it."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels of MessagePack")
    file.seek(at)
    first = int.from_bytes(file.read(1))
    if first in _EXTENSIONS:
        return _array(opener, file, at + 1, _EXTENSIONS[first])
    unpacker = _unpacker(file, at)
    if first not in _MAPS:
        value = unpacker.unpack()
        return value, at + unpacker.tell()
    count, result = unpacker.read_map_header(), {}
    at += unpacker.tell()
    for _ in range(count):
        key, at = _read(opener, file, at, depth + 1)
        if not isinstance(key, str) or key in result:
            raise ValueError(f"the key {key!r} is no text or is there twice")
        result[key], at = _read(opener, file, at, depth + 1)
    return (_joined(result) if "__msgpack_chunked_array__" in result else result), at


def _array(opener: Opener, file: BinaryIO, at: int, length_bytes: int) -> tuple[Tensor, int]:
    length, code = int.from_bytes(file.read(length_bytes)), int.from_bytes(file.read(1))
    start, end, size = at + length_bytes + 1, at + length_bytes + 1 + length, file.seek(0, 2)
    if code not in _ARRAYS or end > size:
        raise ValueError(f"extension type {code} up to byte {end} of {size}, expected an array")
    unpacker = _unpacker(file, start)
    count, shape, name = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
    if count != 3 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has shape {shape} and {count} parts")
    dtype = np.dtype(name) if name in _INTEGERS else float_dtype(name, "array")
    nbytes = math.prod(shape) * dtype.itemsize
    file.seek(start + unpacker.tell())
    head = file.read(min(max(end - nbytes - file.tell(), 0), 6))
    if _BYTES.get(head[:1]) != len(head) or int.from_bytes(head[1:]) != nbytes:
        raise ValueError(f"an array {shape} of {name} has other than {nbytes} bytes")
    read = functools.partial(_load, opener, end - nbytes, tuple(shape), dtype)
    return Tensor("", tuple(shape), dtype, read), end


def _load(opener: Opener, at: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    with opener() as file:
        file.seek(at)
        if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
            raise ValueError(f"the file became shorter than {at + array.nbytes} bytes")
    return array


def _joined(chunked: dict[str, Any]) -> Tensor:
    shape, chunks = chunked["shape"], chunked["chunks"]
    shape = tuple(shape[str(i)] for i in range(len(shape)))
    parts = [chunks[str(i)] for i in range(len(chunks))]
    if math.prod(shape) != sum(math.prod(part.shape) for part in parts):
        raise ValueError(f"an array {shape} is in pieces of {[part.shape for part in parts]}")

    def read() -> np.ndarray:
        return np.concatenate([part.read().reshape(-1) for part in parts]).reshape(shape)

    return Tensor("", shape, parts[0].dtype, read)
