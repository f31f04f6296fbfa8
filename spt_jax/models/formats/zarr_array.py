"""Arrays of a T5X checkpoint: zarr, version 2, in chunks named `0.0`, `0.1` and so on.

TensorStore reads and checks the description of an array. Chunks are decoded here, because
TensorStore accepts a gzip stream whose checksum is cut off, so that a damaged chunk can become
weights. gzip from the standard library checks the whole stream.
"""

import functools
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from spt_jax.models.source import Tensor, float_dtype

_DTYPES = {"<f2": "float16", "<f4": "float32", "<f8": "float64"}  # and bfloat16, by its name
_THREADS = 8
_BLOCK = 1 << 20
_MAX_CHUNKS = 1 << 16  # they are listed; an array of T5X has some hundreds
_MAX_OVERHEAD = 1 << 16  # bytes of a file beyond its numbers: the head of gzip, or a .zarray


def open_zarr(
    store: ts.KvStore,
    folder: str,
    stated: Mapping[str, Any],
    name: str,
    aliases: Mapping[str, str] = {},
) -> Tensor:
    """Return an array of a checkpoint as a tensor that is not read yet.

    Args:
        store: The checkpoint's folder.
        folder: Name of the array's folder in it.
        stated: Shape, chunks and dtype of the array as the checkpoint states them; each optional.
        name: Name of the tensor.
        aliases: Dtypes of zarr that stand for the bits of others here, such as <u2 -> bfloat16.

    Raises:
        ValueError: There is no such array, it is not of this kind, or contradicts `stated`.
    """
    constraints = {key: stated[key] for key in ("shape", "chunks", "dtype") if key in stated}
    spec = {"driver": "zarr", "metadata": constraints}
    try:
        opened = ts.open(spec, kvstore=store / f"{folder}/", open=True, read=True).result()
        found = opened.spec().to_json()["metadata"]
    except Exception as error:  # the type of the exception depends on the driver
        raise ValueError(_without_spec(error)) from None
    compressor, order = found["compressor"] and found["compressor"]["id"], found["order"]
    if compressor not in (None, "gzip") or order != "C":
        raise ValueError(
            f"{folder}/.zarray has order {order!r} and compressor {compressor!r}, "
            "expected 'C' and 'gzip'"
        )
    shape, chunks, kind = tuple(found["shape"]), tuple(found["chunks"]), str(found["dtype"])
    dtype = float_dtype(aliases.get(kind) or _DTYPES.get(kind, kind), name)
    if max(shape, default=0) >= 1 << 31:
        raise ValueError(f"{folder}/.zarray has shape {shape}, larger than any model's")
    if (count := math.prod(_counts(shape, chunks))) > _MAX_CHUNKS:
        raise ValueError(f"{folder}/.zarray states {count:,} chunks, more than {_MAX_CHUNKS:,}")
    if math.prod(chunks) > 2 * math.prod(shape):
        raise ValueError(f"{folder}/.zarray has shape {shape} in chunks of {chunks}")
    for file in _local_files(store, folder):  # a file is read whole, so it must not be too large
        if file.stat().st_size > 2 * math.prod(chunks) * dtype.itemsize + _MAX_OVERHEAD:
            raise ValueError(f"{folder}/{file.name} is larger than a chunk {chunks} of {kind}")
    separator = found.get("dimension_separator", ".")

    def chunk(index: tuple[int, ...]) -> np.ndarray:
        return _read_chunk(
            store, f"{folder}/{separator.join(map(str, index))}", chunks, dtype, compressor
        )

    return Tensor(name, shape, dtype, functools.partial(_read, shape, chunks, dtype, chunk))


def read_key(store: ts.KvStore, key: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read.
    """
    try:
        found = store.read(key).result()
    except Exception as error:  # the type of the exception depends on the driver
        raise ValueError(_without_spec(error)) from None
    if found.state != "value":
        raise FileNotFoundError(f"{key} does not exist")
    return found.value


def _without_spec(error: Exception) -> str:
    """Return TensorStore's message in one line, without the JSON that it appends."""
    return re.sub(r"\s*\[[\w_]+=.*", "", " ".join(str(error).split()))[:300]


def _local_files(store: ts.KvStore, folder: str) -> list[Path]:
    spec = store.spec().to_json()
    return list(Path(spec["path"], folder).rglob("*")) if spec["driver"] == "file" else []


def _counts(shape: tuple[int, ...], chunks: tuple[int, ...]) -> list[int]:
    """Return the number of chunks along each axis."""
    return [-(-size // n) for size, n in zip(shape, chunks)]


def _read(shape, chunks, dtype, chunk) -> np.ndarray:
    if chunks == shape:
        return chunk((0,) * len(shape))
    counts = [range(count) for count in _counts(shape, chunks)]
    array = np.empty(shape, dtype)

    def place(index: tuple[int, ...]) -> None:
        # The last chunks are as large as the others, and reach over the edge.
        part = array[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunks))]
        part[:] = chunk(index)[tuple(slice(n) for n in part.shape)]

    # Few threads where chunks are large, so that those in flight are smaller than the array.
    threads = min(_THREADS, max(1, math.prod(map(len, counts)) // 4))
    with ThreadPoolExecutor(threads, thread_name_prefix="zarr") as pool:
        list(pool.map(place, itertools.product(*counts)))
    return array


def _read_chunk(store, key, chunks, dtype, compressor) -> np.ndarray:
    file = io.BytesIO(read_key(store, key))
    out = np.empty(chunks, dtype)
    view, done = out.reshape(-1).view(np.uint8).data, 0
    try:
        with gzip.GzipFile(fileobj=file) if compressor == "gzip" else file as stream:
            while block := stream.read(_BLOCK):
                if done + len(block) > len(view):
                    raise ValueError(f"{key} has more than {len(view)} bytes")
                view[done : done + len(block)] = block
                done += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{key} is damaged ({error})") from None
    if done != len(view):
        raise ValueError(f"{key} has {done} bytes, expected {len(view)}")
    return out
