"""A zarr array (version 2) as T5X writes it: chunks of gzip, named `0.0`, `0.1` and so on.

TensorStore gets the bytes from wherever they are, and this decodes them: TensorStore's own zarr
driver stops reading before the checksum that ends a gzip stream, so that a damaged chunk becomes
weights, and it takes a missing chunk for zeros.
"""

import functools
import itertools
import json
import math
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorstore as ts

from spt_jax.models.source import Tensor, float_dtype

_DTYPES = {"<f2": "float16", "<f4": "float32", "<f8": "float64"}  # and bfloat16, by its name
_THREADS = 8


def open_zarr(
    store: ts.KvStore,
    folder: str,
    stated: Mapping[str, Any],
    name: str,
    aliases: Mapping[str, str] = {},
) -> Tensor:
    """Reads the description of an array.

    Args:
        store: The checkpoint's folder.
        folder: Of the array in it.
        stated: What the checkpoint says of the array: shape, chunks, dtype; any may be absent.
        name: Of the tensor.
        aliases: Dtypes of zarr that stand for others here -> what their bits are.

    Raises:
        ValueError: There is no such array, it is not of this kind, or contradicts `stated`.
    """
    try:
        found = json.loads(read_key(store, f"{folder}/.zarray"))
        for key in ("shape", "chunks", "dtype"):
            if key in stated and stated[key] != found[key]:
                raise ValueError(
                    f"{folder}/.zarray has {key} {found[key]}, the checkpoint says {stated[key]}"
                )
        compressor = found["compressor"] and found["compressor"]["id"]
        kind = found["zarr_format"], found["order"], found.get("filters"), compressor
        if kind not in ((2, "C", None, "gzip"), (2, "C", None, None)):
            raise ValueError(
                f"{folder}/.zarray has version, order, filters and compressor {kind}, expected "
                "(2, 'C', None, 'gzip')"
            )
        stored = found["dtype"]
        dtype = float_dtype(aliases.get(stored) or _DTYPES.get(stored, str(stored)), name)
        shape, chunks = tuple(found["shape"]), tuple(found["chunks"])
        numbers = all(type(n) is int and n >= 1 for n in shape + chunks)
        if not numbers or len(shape) != len(chunks) or math.prod(chunks) > 2 * math.prod(shape):
            raise ValueError(f"{folder}/.zarray has shape {shape} in chunks of {chunks}")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}/.zarray is damaged ({error!r})") from None
    separator = found.get("dimension_separator", ".")
    chunk = functools.partial(
        _read_chunk, store, f"{folder}/", separator, chunks, dtype, compressor
    )
    return Tensor(name, shape, dtype, functools.partial(_read, shape, chunks, dtype, chunk))


def read_key(store: ts.KvStore, key: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It cannot be read.
    """
    try:
        found = store.read(key).result()
    except Exception as error:  # which exception it is depends on the driver
        reason = re.sub(r"\s*\[[\w_]+=.*", "", " ".join(str(error).split()))[:300]
        raise ValueError(reason) from None
    if found.state != "value":
        raise FileNotFoundError(f"{key} does not exist")
    return found.value


def _read(shape, chunks, dtype, chunk) -> np.ndarray:
    array = np.empty(shape, dtype)

    def place(index: tuple[int, ...]) -> None:
        # The last chunks are as large as the others, and reach over the edge.
        part = array[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunks))]
        part[:] = chunk(index)[tuple(slice(n) for n in part.shape)]

    counts = [range(-(-size // n)) for size, n in zip(shape, chunks)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="zarr") as threads:
        list(threads.map(place, itertools.product(*counts)))
    return array


def _read_chunk(store, folder, separator, chunks, dtype, compressor, index) -> np.ndarray:
    key, size = folder + separator.join(map(str, index)), math.prod(chunks) * dtype.itemsize
    data = read_key(store, key)
    if compressor == "gzip":
        stream = zlib.decompressobj(wbits=31)  # gzip, with its checksum
        try:
            data = stream.decompress(data, size + 1)
            data += stream.flush()
        except zlib.error as error:
            raise ValueError(f"{key} is damaged ({error})") from None
        if not stream.eof or stream.unused_data:
            raise ValueError(f"{key} is not one whole stream of gzip")
    if len(data) != size:
        raise ValueError(f"{key} has {len(data)} bytes, expected {size}")
    return np.frombuffer(data, dtype).reshape(chunks)
