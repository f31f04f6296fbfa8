"""Prompt files: one soft prompt in a safetensors file, with what it was trained for as metadata.

The tensor is named `prompt` and is float32 [P, D]. A file that loads without an error holds finite
numbers. Writing is atomic: a file that is replaced holds the old prompt or the new one, whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from spt_jax.runs.log import write_atomic

ROW_NAMES = ("template", "missing", "sentinel_targets")
"""Metadata of a prompt that say how rows become inputs and targets; `prediction.inputs.form_of`
reads them."""


def row_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a prompt keeps of its run's config, so that rows are read as in training.

    Args:
        config: Config of the run as a dict. A default is not kept.
    """
    task, data = config.get("task") or {}, config.get("data") or {}
    kept = {}
    if task.get("template") is not None:
        kept["template"] = task["template"]
    if task.get("missing", "error") != "error":
        kept["missing"] = task["missing"]
    if data.get("sentinel_targets"):
        kept["sentinel_targets"] = "true"
    return kept


def save_prompt(path: str | os.PathLike, prompt: Any, metadata: Mapping[str, Any]) -> None:
    """Write a prompt file atomically.

    Args:
        path: Path of the safetensors file; its folder exists.
        prompt: Finite float32 array [P, D].
        metadata: Values by name; each is stored as its `str`.

    Raises:
        RunError: The file could not be written; a file that was there is untouched.
        ValueError: The array is not finite float32 [P, D].
    """
    array = np.array(prompt, order="C")
    _check_shape(array.shape, str(array.dtype), str(path))
    check_finite(array, str(path))
    write_atomic(path, prompt_bytes(array, metadata))


def prompt_bytes(prompt: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """Return a prompt file of float32 [P, D]; equal arguments give equal bytes."""
    text = {str(key): str(value) for key, value in metadata.items()}
    return with_sorted_header(safetensors.numpy.save({"prompt": prompt}, text))


def load_prompt(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, str]]:
    """Read a prompt file.

    Returns:
        The prompt, float32 [P, D], and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or holds no finite float32 [P, D] named `prompt`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"prompt file {path} {'is a folder' if path.is_dir() else 'does not exist'}; "
            "expected a file such as runs/mine/prompt.safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            # safetensors returns the metadata in no fixed order.
            names, metadata = list(file.keys()), dict(sorted((file.metadata() or {}).items()))
            if "prompt" not in names:
                raise ValueError(
                    f"{path} holds the tensors {names}, expected one named 'prompt'; "
                    "give a prompt.safetensors of a run"
                )
            part = file.get_slice("prompt")
            dtype = str(part.get_dtype()).replace("F32", "float32")
            _check_shape(tuple(part.get_shape()), dtype, str(path))
            array = np.array(file.get_tensor("prompt"))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); give a prompt.safetensors of a run"
        ) from error
    check_finite(array, str(path))
    return array, metadata


def with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with its header in sorted order, so that equal prompts are equal
    files: the library writes metadata in the order of a hash that differs between processes."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # The format aligns the tensors to 8 bytes.
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def check_finite(array: np.ndarray, origin: str) -> None:
    """Raise ValueError if a prompt has values that are NaN or infinite."""
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ValueError(
            f"prompt of {origin} has {bad} of {array.size} values that are NaN or inf, expected "
            "finite ones; train it again with a lower learning rate, or get another copy"
        )


def _check_shape(shape: tuple[int, ...], dtype: str, origin: str) -> None:
    if len(shape) != 2 or 0 in shape or dtype != "float32":
        raise ValueError(f"prompt of {origin} is {dtype}{list(shape)}, expected float32[P, D]")
