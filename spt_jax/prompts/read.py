"""The one reader of a prompt at a path, and the one check that a prompt fits a model.

safetensors    a run, or its prompt.safetensors     says model, task and scores
npy            an array of Google's prompt tuning   says nothing
peft           the folder of a PEFT adapter         says the base model
               FOLDER#K is task K of a multitask adapter

Each may be on this machine or in a bucket. What is read is finite float32 [P, D], or an error.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spt_jax.models.backbone import Backbone
from spt_jax.prompts.file import check_finite, load_prompt, row_metadata
from spt_jax.prompts.npy import MAGIC, read_npy
from spt_jax.prompts.peft import CONFIG, TENSORS, read_peft
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.progress import say
from spt_jax.runs.workdir import find_address, open_run

Format = Literal["safetensors", "npy", "peft"]


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt as it was found.

    Args:
        prompt: Finite float32 array [P, D].
        metadata: What its files say of it: `model`, `fingerprint`, `task`, `score`, `template`, ...
        format: Format that it was stored in.
        origin: File, or folder of an adapter, that it was read from.
    """

    prompt: np.ndarray
    metadata: dict[str, str]
    format: Format
    origin: str

    def describe(self) -> dict[str, Any]:
        """Return format, shape, and the L2 norms of the vectors.

        Trained vectors are usually several times as long as word embeddings.
        """
        norms = np.linalg.norm(self.prompt.astype(np.float64), axis=1)
        return {
            "format": self.format,
            "length": self.prompt.shape[0],
            "d_model": self.prompt.shape[1],
            "norm": {"mean": norms.mean(), "min": norms.min(), "max": norms.max()},
            "largest": float(np.abs(self.prompt).max()),
        }

    def require_model(self, name: str, d_model: int, fingerprint: str | None = None) -> None:
        """Raise ValueError if this prompt does not fit a model.

        Args:
            name: Name of the model, for the message.
            d_model: Width of the model.
            fingerprint: Identity of its weights, compared with the one that the prompt keeps, if it
                keeps one. None checks the width alone.
        """
        width, trained_on = self.prompt.shape[1], self.metadata.get("fingerprint")
        problem = None
        if width != d_model:
            problem = f"has d_model {width} but '{name}' has {d_model}"
        elif fingerprint and trained_on and trained_on != fingerprint:
            problem = (
                f"was trained on model '{self.metadata.get('model')}' with fingerprint "
                f"{trained_on[:12]} but '{name}' has {fingerprint[:12]}"
            )
        if problem:
            raise ValueError(
                f"prompt {self.origin} {problem}; give the model that it was trained on"
            )

    def require_backbone(self, backbone: Backbone, *, width_only: bool = False) -> None:
        """Raise ValueError if this prompt does not fit a loaded model; see `require_model`.

        If it was trained on the same weights in another precision, say so.
        """
        fingerprint = None if width_only else backbone.fingerprint
        self.require_model(backbone.name, backbone.model.config.d_model, fingerprint)
        trained_on, now = self.metadata.get("param_dtype"), backbone.param_dtype
        if trained_on and trained_on != now and not width_only:
            say(f"prompt {self.origin} was trained on weights in {trained_on}; here they are {now}")


def read_prompt(path: str | Path) -> StoredPrompt:
    """Read a prompt in whichever format it is.

    Args:
        path: A run that tuned a prompt alone, a prompt.safetensors, a `.npy` file (found by its
            first bytes or its name), or the folder of a PEFT adapter; local or in a bucket.

    Raises:
        FileNotFoundError: It does not exist, or a file of it is missing.
        ValueError: It holds no finite float32 [P, D], or a prompt that belongs to a tuned model.
    """
    path, task = _split_task(Path(path))
    with open_run(path) as place:
        prompt, metadata, format, origin = _read(place, task)
        check_finite(prompt, str(origin))
    if address := find_address(path):
        origin = str(origin).replace(str(place), address)
    return StoredPrompt(prompt, metadata, format, str(origin))


def read_start(run: str | Path) -> StoredPrompt:
    """Read what the prompt of a run was before training.

    Args:
        run: Folder of the run, local or in a bucket.

    Raises:
        FileNotFoundError: There is no such run, or it keeps no start.
        ValueError: The start is damaged.
    """
    with open_run(Path(run)) as place:
        file = RunFolder(place).start_file
        if not file.is_file():
            raise FileNotFoundError(
                f"'{run}' keeps no start: expected {file.name} in it, which a run writes at its "
                "end; runs of earlier versions have none, train it again"
            )
        prompt, metadata = load_prompt(file)
    return StoredPrompt(prompt, metadata, "safetensors", f"{run}/{file.name}")


def _split_task(path: Path) -> tuple[Path, int | None]:
    """Return the path of a prompt, and the number of a task if it ends in '#K'."""
    match = re.fullmatch(r"(.+)#(\d+)", str(path))
    return (path, None) if match is None or path.exists() else (Path(match[1]), int(match[2]))


def _read(path: Path, task: int | None) -> tuple[np.ndarray, dict[str, str], Format, Path]:
    if path.is_dir() and (path / CONFIG).is_file():
        return *read_peft(path, task), "peft", path
    if task is not None:
        raise ValueError(f"'{path}#{task}' names a task, but '{path}' is no PEFT adapter")
    if path.is_dir():
        return *_read_run(RunFolder(path)), "safetensors", RunFolder(path).prompt_file
    if path.name in (CONFIG, TENSORS):
        raise ValueError(f"{path} is a file of a PEFT adapter; give the folder, {path.parent}")
    if path.is_file() and _begins_as_npy(path):
        return read_npy(path), {}, "npy", path
    return *load_prompt(path), "safetensors", path


def _read_run(folder: RunFolder) -> tuple[np.ndarray, dict[str, str]]:
    if not folder.prompt_file.is_file():
        raise FileNotFoundError(
            f"'{folder.path}' holds no prompt: expected {folder.prompt_file.name} (a run) or "
            f"{CONFIG} (a PEFT adapter) in it"
        )
    config = folder.read_config() if folder.config_file.is_file() else {}
    if config.get("tune") == "model":
        raise ValueError(
            f"run '{folder.path}' tuned the model, so its prompt serves no other model; "
            "give a run that tuned a prompt alone"
        )
    prompt, metadata = load_prompt(folder.prompt_file)
    return prompt, row_metadata(config) | metadata


def _begins_as_npy(path: Path) -> bool:
    """Return whether a file is `.npy` by name or content; Google's training writes no suffix."""
    with open(path, "rb") as file:
        return path.suffix == ".npy" or file.read(len(MAGIC)) == MAGIC
