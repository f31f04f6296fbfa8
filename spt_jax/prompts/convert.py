"""Convert a prompt from one format to another; an existing file is never overwritten."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from spt_jax.errors import suggest
from spt_jax.models.base_checkpoint import Base
from spt_jax.models.load import Reader
from spt_jax.models.open import open_model
from spt_jax.prompts.file import save_prompt
from spt_jax.prompts.npy import npy_bytes
from spt_jax.prompts.peft import peft_files
from spt_jax.prompts.read import Format, StoredPrompt, read_prompt
from spt_jax.runs.log import write_atomic


def import_prompt(
    source: Path, dest: Path, *, model: str | None = None, task: str | None = None
) -> dict[str, Any]:
    """Write a prompt of any format as a prompt file.

    Args:
        source: Path of the prompt; see `read_prompt`.
        dest: File to be made; its folders are made too.
        model: Frozen T5 that the prompt was trained on. Its weights are read once for their
            fingerprint, and the prompt then loads on that model alone. Without it, the base that
            the source names is kept as text, and loading checks only the width.
        task: Name of the task to keep with it; that of the source by default.

    Returns:
        What `spt-jax prompt import` prints: the metadata, and `StoredPrompt.describe`.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: The source does not exist.
        ValueError: The source holds no prompt, or one of another model. `dest` is not made.
    """
    require_new(dest)
    stored = read_prompt(source)
    metadata = stored.metadata | {"length": str(len(stored.prompt))}
    if stored.format != "safetensors":
        metadata["imported_from"] = stored.format
    if model is not None:
        metadata |= _identify(model, stored)
    if task is not None:
        metadata["task"] = task
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_prompt(dest, stored.prompt, metadata)
    return {"prompt": str(dest), **metadata, **stored.describe()}


def export_prompt(
    source: Path, dest: Path, *, format: str, base: str | None = None
) -> dict[str, Any]:
    """Write a prompt in a format that other programs read.

    Args:
        source: Path of the prompt; see `read_prompt`.
        dest: File to be made, or with `peft` a folder.
        format: `safetensors`, `npy` or `peft`.
        base: For `peft`, name of the model as transformers loads it; that in the prompt's metadata
            by default.

    Returns:
        What `spt-jax prompt export` prints: `StoredPrompt.describe`, what was written where, and a
        `note` on a prompt with sentinel targets.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: The source does not exist.
        ValueError: The source holds no prompt for a frozen model. `dest` is not made.
    """
    formats = get_args(Format)
    if format not in formats:
        raise ValueError(
            f"format is {format!r}, expected one of {', '.join(formats)}{suggest(format, formats)}"
        )
    if base is not None and format != "peft":
        raise ValueError(f"base is given, but the format {format} does not keep it; leave it out")
    require_new(dest)
    stored = read_prompt(source)
    base = stored.metadata.get("model") if base is None else base
    dest.parent.mkdir(parents=True, exist_ok=True)
    if format == "peft":
        write_folder(dest, peft_files(stored.prompt, stored.metadata, base))
    elif format == "npy":
        write_atomic(dest, npy_bytes(stored.prompt))
    else:
        save_prompt(dest, stored.prompt, stored.metadata)
    written = {"base": base} if format == "peft" else {}
    if stored.metadata.get("sentinel_targets") == "true" and format != "safetensors":
        written["note"] = (
            "trained with data.sentinel_targets, which other programs do not read from this file: "
            "put <extra_id_0> in front of targets and label words, and leave it out of what the "
            "model writes"
        )
    return {**stored.describe(), "format": format, "output": str(dest), **written}


def _identify(model: str, stored: StoredPrompt) -> Mapping[str, str]:
    opened = open_model(model)
    stored.require_model(model, opened.config.d_model)  # before all weights are read
    fingerprint = opened.fingerprint if isinstance(opened, Base) else _fingerprint(Reader(opened))
    stored.require_model(model, opened.config.d_model, fingerprint)
    return {"model": opened.name, "fingerprint": fingerprint}


def _fingerprint(reader: Reader) -> str:
    for _ in reader:  # reads one leaf after another and keeps none
        pass
    return reader.fingerprint()


def require_new(dest: Path) -> None:
    """Raise FileExistsError if there is something at a path that is to be written."""
    if dest.exists():
        raise FileExistsError(f"{dest} exists; name a new place, or remove that one first")


def write_folder(dest: Path, files: Mapping[str, bytes]) -> None:
    """Write the files to a hidden folder and rename it, so that no reader finds half of it."""
    partial = dest.absolute().parent / f".{dest.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        for name, data in files.items():
            write_atomic(partial / name, data)
        os.rename(partial, dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
