"""Safetensors files, opened by the library `safetensors`, which checks the header against the size.

The backend `pread` reads a tensor into memory of its own. A mapped file would count as memory of
this process, page by page, until it is as large as the model.
"""

import functools
from pathlib import Path

from safetensors import SafetensorError, safe_open

from spt_jax.models.source import Tensor, float_dtype

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; none of them is read yet.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole safetensors file, or a tensor is not floating.
    """
    try:
        file = safe_open(path, framework="numpy", backend="pread")
        tensors = {}
        for name in file.keys():  # noqa: SIM118, the file is no dict
            entry = file.get_slice(name)
            kind = str(entry.get_dtype())
            dtype = float_dtype(_DTYPES.get(kind, kind), name)
            read = functools.partial(_read, path, file, name)
            tensors[name] = Tensor(name, tuple(entry.get_shape()), dtype, read)
        return tensors
    except (SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read(path, file, name):
    try:
        return file.get_tensor(name)
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"weights {path} cannot be read: {error}; expected a whole safetensors file, "
        "download or copy it again"
    )
