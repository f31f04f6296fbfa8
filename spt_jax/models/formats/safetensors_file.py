"""A safetensors file: its header checked against its size, its tensors read one by one.

The format is 8 bytes with the length of the header, the header in JSON, and the data. The file is
read and not mapped: mapped pages would count as memory of the process, as large as the model.
"""

import functools
import json
import math
import os
from pathlib import Path

import numpy as np

from spt_jax.models.source import Tensor, float_dtype

MAX_HEADER = 100_000_000  # the format's own limit
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole safetensors file, or a tensor is not floating.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        tensors = _tensors(path, header, 8 + length)
        used = sum(_nbytes(tensor) for tensor in tensors.values())
        if used != size - 8 - length:
            raise ValueError(f"{size - 8 - length} bytes of data, its header says {used}")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"its header is damaged ({error!r})"
        raise ValueError(
            f"weights {path} cannot be read: {reason}; expected a whole safetensors file, "
            "download or copy it again"
        ) from error


def _tensors(path: Path, header: dict, start: int) -> dict[str, Tensor]:
    header.pop("__metadata__", None)
    end, tensors = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = float_dtype(_DTYPES.get(entry["dtype"], str(entry["dtype"])), name)
        shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise ValueError(f"tensor {name} has shape {shape} and offsets {first}, {last}")
        # Tensors lie behind one another without holes, so that each byte belongs to one of them.
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name} {shape} lies at bytes {first} to {last}")
        read = functools.partial(_read, path, start + first, shape, dtype)
        tensors[name], end = Tensor(name, shape, dtype, read), last
    return tensors


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _read(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        view, done = array.reshape(-1).view(np.uint8).data, 0
        while done < len(view):
            count = file.readinto(view[done : done + (1 << 26)])
            if not count:
                raise ValueError(f"weights {path} cannot be read: it ended at {offset + done}")
            done += count
    return array
