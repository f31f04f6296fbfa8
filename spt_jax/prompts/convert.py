"""A prompt from one format to another; what is there already is never overwritten."""

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
from spt_jax.prompts.read import Format, Stored, describe_stored, read_stored
from spt_jax.runs.log import write_atomic


def import_prompt(
    source: Path, dest: Path, *, model: str | None = None, task: str | None = None
) -> dict[str, Any]:
    """Writes a prompt of any format as a prompt file of ours.

    Args:
        source: See `read_stored`.
        dest: A file to be made; its folders are made too.
        model: The frozen T5 that the prompt was trained on. Its weights are read once for their
            fingerprint, and the prompt then loads on that model alone. Without it, the base that
            the source names is kept as text and only the width is checked when the prompt loads.
        task: A name to keep with it; that of the source by default.

    Returns:
        What `spt-jax prompt import` prints.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: The source does not exist.
        ValueError: The source holds no prompt, or `model` is another one. `dest` is not made.
    """
    _require_new(dest)
    stored = read_stored(source)
    metadata = stored.metadata | {"length": str(len(stored.prompt))}
    if stored.format != "safetensors":
        metadata["imported_from"] = stored.format
    if model is not None:
        metadata |= _identify(model, stored, source)
    if task is not None:
        metadata["task"] = task
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_prompt(dest, stored.prompt, metadata)
    return {"prompt": str(dest), **metadata, **describe_stored(stored)}


def export_prompt(
    source: Path, dest: Path, *, format: str, base: str | None = None
) -> dict[str, Any]:
    """Writes a prompt for other programs.

    Args:
        source: See `read_stored`.
        dest: A file to be made, or with `peft` a folder.
        format: `safetensors`, `npy` or `peft`.
        base: The model as transformers loads it, for `peft`; the name in the prompt's metadata by
            default.

    Returns:
        What `spt-jax prompt export` prints.

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
    _require_new(dest)
    stored = read_stored(source)
    base = stored.metadata.get("model") if base is None else base
    dest.parent.mkdir(parents=True, exist_ok=True)
    if format == "peft":
        _write_folder(dest, peft_files(stored.prompt, stored.metadata, base))
    elif format == "npy":
        write_atomic(dest, npy_bytes(stored.prompt))
    else:
        save_prompt(dest, stored.prompt, stored.metadata)
    written = {"base": base} if format == "peft" else {}
    return {**describe_stored(stored), "format": format, "output": str(dest), **written}


def _identify(model: str, stored: Stored, source: Path) -> Mapping[str, str]:
    opened, width = open_model(model), stored.prompt.shape[1]
    if width != opened.config.d_model:
        raise ValueError(
            f"prompt {source} has d_model {width} but '{model}' has {opened.config.d_model}; "
            "give the model that it was trained on"
        )
    fingerprint = opened.fingerprint if isinstance(opened, Base) else _fingerprint(Reader(opened))
    trained_on = stored.metadata.get("fingerprint")
    if trained_on is not None and trained_on != fingerprint:
        raise ValueError(
            f"prompt {source} was trained on model '{stored.metadata.get('model')}' with "
            f"fingerprint {trained_on[:12]} but '{model}' has {fingerprint[:12]}; "
            "give the model that it was trained on"
        )
    return {"model": opened.name, "fingerprint": fingerprint}


def _fingerprint(reader: Reader) -> str:
    for _ in reader:  # one leaf after another, each forgotten
        pass
    return reader.fingerprint()


def _require_new(dest: Path) -> None:
    if dest.exists():
        raise FileExistsError(f"{dest} exists; name a new place, or remove that one first")


def _write_folder(dest: Path, files: Mapping[str, bytes]) -> None:
    """The folder gets its name when it is whole."""
    partial = dest.absolute().parent / f".{dest.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        for name, data in files.items():
            write_atomic(partial / name, data)
        os.rename(partial, dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
