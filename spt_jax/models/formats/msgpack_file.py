"""MessagePack, as Flax packs a tree of arrays, read without copying an array.

A checkpoint may hold all of its arrays in this one file. Here they are views of the bytes given,
which may be a mapped file, so that opening it costs no memory; the library `msgpack` copies each.

    ExtType 1    an array: packed (shape, dtype name, bytes in C order)
    ExtType 3    a numpy scalar, packed likewise
    {"__msgpack_chunked_array__": True, "shape": {"0": ..}, "chunks": {"0": ..}}
                 an array of more than 1 GiB, in pieces of the flat array
"""

import math
import struct
from typing import Any

import numpy as np

from spt_jax.models.source import float_dtype

_NUMBERS = {  # first byte of a number: its format
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {  # first byte of what has a length: kind, bytes of the length
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_DEPTH = 64


def unpack(buffer: memoryview) -> Any:
    """The tree in a buffer: dicts, lists, numbers, text, and arrays that are views of it.

    Raises:
        ValueError: The buffer is not one whole MessagePack value of these kinds.
    """
    try:
        value, end = _read(buffer, 0, 0)
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"no valid MessagePack: {error}") from None
    if end != len(buffer):
        raise ValueError(f"{len(buffer) - end} bytes behind the MessagePack value")
    return value


def _read(buffer: memoryview, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEPTH:
        raise ValueError(f"more than {_DEPTH} levels of MessagePack")
    kind, count, at = _head(buffer, at)
    if kind == "value":
        return count, at
    if kind == "map":
        result = {}
        for _ in range(count):
            key, at = _read(buffer, at, depth + 1)
            if not isinstance(key, str) or key in result:
                raise ValueError(f"the key {key!r} is no text or is there twice")
            result[key], at = _read(buffer, at, depth + 1)
        return (_joined(result) if "__msgpack_chunked_array__" in result else result), at
    if kind == "list":
        items = []
        for _ in range(count):
            item, at = _read(buffer, at, depth + 1)
            items.append(item)
        return items, at
    start = at + (kind == "ext")
    end = start + count
    if end > len(buffer):
        raise ValueError(f"cut off at byte {len(buffer)}, expected {end}")
    data = buffer[start:end]
    if kind == "ext":
        return _array(buffer[at], data, depth), end
    return (str(data, "utf-8") if kind == "str" else data), end


def _head(buffer: memoryview, at: int) -> tuple[str, Any, int]:
    """(kind, length or value, where the rest starts)."""
    first, at = buffer[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return "value", first - 256 * (first >= 0xE0), at
    if first < 0xC0:  # small maps, lists and texts have their length in the first byte
        kind, mask = ("map", 15) if first < 0x90 else ("list", 15) if first < 0xA0 else ("str", 31)
        return kind, first & mask, at
    if first in _CONSTANTS:
        return "value", _CONSTANTS[first], at
    if first in _NUMBERS:
        number = struct.Struct(_NUMBERS[first])
        return "value", number.unpack_from(buffer, at)[0], at + number.size
    if first in _FIXED_EXT:
        return "ext", _FIXED_EXT[first], at
    if first not in _LENGTHS:
        raise ValueError(f"byte {first:#x} at {at - 1} starts no MessagePack value")
    kind, size = _LENGTHS[first]
    if at + size > len(buffer):
        raise ValueError(f"cut off at byte {len(buffer)}")
    return kind, int.from_bytes(buffer[at : at + size], "big"), at + size


def _array(code: int, data: memoryview, depth: int) -> np.ndarray:
    if code not in (1, 3):
        raise ValueError(f"extension type {code}, expected 1 (array) or 3 (scalar)")
    value, end = _read(data, 0, depth + 1)
    if end != len(data) or not isinstance(value, list) or len(value) != 3:
        raise ValueError("an array is not packed as shape, dtype and bytes")
    shape, name, raw = value
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has shape {shape}")
    dtype = np.dtype(name) if name in ("int32", "int64", "uint32") else float_dtype(name, "array")
    if not isinstance(raw, memoryview) or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array {shape} of {name} has other than as many bytes")
    return np.frombuffer(raw, dtype).reshape(shape)


def _joined(chunked: dict[str, Any]) -> np.ndarray:
    shape, chunks = chunked["shape"], chunked["chunks"]
    flat = np.concatenate([chunks[str(i)].reshape(-1) for i in range(len(chunks))])
    shape = [shape[str(i)] for i in range(len(shape))]
    if math.prod(shape) != flat.size:
        raise ValueError(f"an array {shape} has {flat.size} elements")
    return flat.reshape(shape)
