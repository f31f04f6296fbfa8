"""`pytorch_model.bin`, read by torch where it is installed: tensors only, never other pickles."""

import functools
import importlib
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from spt_jax.models.source import Tensor, float_dtype


def open_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; a zip file is mapped and not read.

    Raises:
        ValueError: torch is not installed, the file cannot be read or holds more than tensors.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            f"weights {path} are a pickle of torch, which is not installed; "
            "`pip install 'spt_jax[torch]'`, or take a model with safetensors"
        ) from None
    try:
        state = _load(torch, path)
        return {name: _tensor(torch, name, value) for name, value in state.items()}
    except Exception as error:  # unpickling may raise any exception
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"weights {path} cannot be read ({type(error).__name__}: {reason}); "
            "expected a whole pytorch_model.bin that holds tensors only"
        ) from error


def _load(torch: Any, path: Path) -> dict[str, Any]:
    # Files of torch before 1.6 are no zip files, so they cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    if mapped:
        with zipfile.ZipFile(path) as file:
            if (damaged := file.testzip()) is not None:  # torch does not check the checksums
                raise ValueError(f"its part {damaged} differs from its checksum")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, expected a dict of tensors")
    return state


def _tensor(torch: Any, name: str, value: Any) -> Tensor:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a tensor")
    dtype = float_dtype(str(value.dtype).removeprefix("torch."), name)
    return Tensor(name, tuple(value.shape), dtype, functools.partial(_read, torch, value, dtype))


def _read(torch: Any, value: Any, dtype: np.dtype) -> np.ndarray:
    if dtype == ml_dtypes.bfloat16:  # numpy has none, so torch hands out its bits
        value = value.contiguous().view(torch.int16)
    return np.array(value.numpy()).view(dtype)  # a copy, because the file is mapped
