"""A stored prompt in any format.

safetensors    a run, or the prompt.safetensors of one      says model, task and scores
npy            Google's array                               says nothing
peft           the folder of an adapter                     says the base model
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spt_jax.models.backbone import Backbone
from spt_jax.prompts.file import load_prompt, require_same_model
from spt_jax.prompts.npy import MAGIC, read_npy
from spt_jax.prompts.peft import CONFIG, TENSORS, read_peft
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run

Format = Literal["safetensors", "npy", "peft"]


@dataclass(frozen=True)
class Stored:
    """A prompt as it was found.

    Args:
        prompt: float32 [P, D], finite.
        metadata: What its files say of it: `model`, `fingerprint`, `task`, `score`, ...
        format: That it was stored in.
    """

    prompt: np.ndarray
    metadata: dict[str, str]
    format: Format


def read_stored(path: Path) -> Stored:
    """Reads a prompt in whichever format it is.

    Args:
        path: A run, a prompt.safetensors, a `.npy` file (by its first bytes or its name), or the
            folder of a PEFT adapter; each here or in a bucket.

    Raises:
        FileNotFoundError: It does not exist, or a file of it is missing.
        ValueError: It holds no prompt, or one with NaN or inf.
    """
    with open_run(path) as place:
        return _read(place)


def _read(path: Path) -> Stored:
    if path.is_dir():
        stored = _read_folder(path)
    elif path.name in (CONFIG, TENSORS):
        raise ValueError(f"{path} is a file of a PEFT adapter; give the folder, {path.parent}")
    elif path.suffix == ".npy" or _begins_as_npy(path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected a .npy file of a prompt")
        stored = Stored(read_npy(path), {}, "npy")
    else:
        stored = Stored(*load_prompt(path), "safetensors")
    bad = int(np.sum(~np.isfinite(stored.prompt)))
    if bad:
        raise ValueError(
            f"prompt of {path} has {bad} of {stored.prompt.size} values that are NaN or inf; "
            "expected finite ones, ask for another copy"
        )
    return stored


def require_model_of(stored: Stored, backbone: Backbone, path: Path) -> None:
    """Raises ValueError where a prompt was trained on another model, or has another width."""
    require_same_model(stored.metadata, backbone, path)
    width, expected = stored.prompt.shape[1], backbone.model.config.d_model
    if width != expected:
        raise ValueError(
            f"prompt {path} has d_model {width} but '{backbone.name}' has {expected}; "
            "give the model that it was trained on"
        )


def describe_stored(stored: Stored) -> dict[str, Any]:
    """Format, shape, and the L2 norms of the vectors: several times those of words are usual."""
    norms = np.linalg.norm(stored.prompt.astype(np.float64), axis=1)
    return {
        "format": stored.format,
        "length": stored.prompt.shape[0],
        "d_model": stored.prompt.shape[1],
        "norm": {"mean": norms.mean(), "min": norms.min(), "max": norms.max()},
        "largest": float(np.abs(stored.prompt).max()),
    }


def _read_folder(path: Path) -> Stored:
    if (path / CONFIG).is_file():
        return Stored(*read_peft(path), "peft")
    folder = RunFolder(path)
    if not folder.prompt_file.is_file():
        raise FileNotFoundError(
            f"'{path}' holds no prompt: expected {folder.prompt_file.name} (a run) or {CONFIG} "
            "(a PEFT adapter) in it"
        )
    if folder.config_file.is_file() and folder.read_config().get("tune") == "model":
        raise ValueError(
            f"run '{path}' tuned the model, so its prompt serves no other model; "
            "give a run that tuned a prompt alone"
        )
    return Stored(*load_prompt(folder.prompt_file), "safetensors")


def _begins_as_npy(path: Path) -> bool:
    """The files that Google's training writes have no suffix."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
