"""Arrays of a T5X checkpoint: zarr, version 2, in chunks named `0.0`, `0.1` and so on.

TensorStore reads them. It checks the checksum of a gzip stream and decodes no more of it than a
chunk holds. By default it takes a missing chunk for zeros, so that default is switched off here.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from spt_jax.models.source import Tensor, float_dtype

_COMPRESSORS = (None, "gzip")
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
        aliases: Dtypes that stand for the bits of others here, such as uint16 -> bfloat16.

    Raises:
        ValueError: There is no such array, it is not of this kind, or contradicts `stated`.
    """
    constraints = {key: stated[key] for key in ("shape", "chunks", "dtype") if key in stated}
    spec = {"driver": "zarr", "fill_missing_data_reads": False, "metadata": constraints}
    try:
        array = ts.open(spec, kvstore=store / f"{folder}/", open=True, read=True).result()
        found = array.spec().to_json()["metadata"]
    except Exception as error:  # the type of the exception depends on the driver
        raise ValueError(without_spec(error)) from None
    compressor = found["compressor"] and found["compressor"]["id"]
    shape, chunks = found["shape"], found["chunks"]
    if compressor not in _COMPRESSORS or found["order"] != "C":
        raise ValueError(
            f"{folder}/.zarray has order {found['order']!r} and compressor {compressor!r}, "
            "expected 'C' and 'gzip'"
        )
    kind = array.dtype.name
    dtype = float_dtype(aliases.get(kind, kind), name)
    # TensorStore would allocate these chunks and read these files whole, whatever the array states.
    if math.prod(chunks) > 2 * math.prod(shape):
        raise ValueError(f"{folder}/.zarray has shape {shape} in chunks of {chunks}")
    for file in _local_files(store, folder):
        if file.stat().st_size > 2 * math.prod(chunks) * dtype.itemsize + _MAX_OVERHEAD:
            raise ValueError(f"{folder}/{file.name} is larger than a chunk of {chunks} {kind}")
    return Tensor(name, tuple(shape), dtype, functools.partial(_read, array, dtype))


def _local_files(store: ts.KvStore, folder: str) -> list[Path]:
    spec = store.spec().to_json()
    return list(Path(spec["path"], folder).rglob("*")) if spec["driver"] == "file" else []


def _read(array: ts.TensorStore, dtype: np.dtype) -> np.ndarray:
    # numpy raises where there is no memory; TensorStore would end the process.
    out = np.empty(array.shape, dtype)
    try:
        ts.array(out.view(array.dtype.numpy_dtype)).write(array).result()
    except Exception as error:
        raise ValueError(without_spec(error)) from None
    return out


def without_spec(error: Exception) -> str:
    """Return TensorStore's message in one line, without the JSON that it appends."""
    return re.sub(r"\s*\[[\w_]+=.*", "", " ".join(str(error).split()))[:300]
