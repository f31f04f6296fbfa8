"""The prompts of a server at one moment, and the only way from a name in a request to a file.

`PromptSet` is immutable, as `PromptBank` is: loading and unloading return another one. A request to
load a prompt names it, so it is found by its name in one folder, and only as a run or a safetensors
file. No other path, address or format is taken from a request.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.errors import require
from spt_jax.evaluation.scores import encode_answers
from spt_jax.models.backbone import Backbone
from spt_jax.paths import safe_join
from spt_jax.prediction.inputs import InputForm, form_of
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.read import StoredPrompt, read_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of prompts: one part of a path, and the same in a URL, a log and a metric."""

_ROOM_FOR_METADATA = 1 << 20
"""Bytes of a prompt file beside its vectors."""


@dataclass(frozen=True)
class LoadedPrompt:
    """What a server knows of a prompt.

    Args:
        stored: Vectors and metadata.
        form: How its rows become inputs, and what its targets begin with.
        labels: Label words of its task; empty for free text, and where they are not known.
        answers: Their token ids, with a sentinel in front if it was trained so, int32 [W, U].
    """

    stored: StoredPrompt
    form: InputForm
    labels: tuple[str, ...]
    answers: np.ndarray

    def describe(self) -> dict[str, Any]:
        """Return task, length, fingerprint of the model and scores, as far as they are known."""
        metadata = self.stored.metadata
        scores = {name: _number(metadata.get(name)) for name in ("score", "dev_score")}
        return {
            "task": metadata.get("task"),
            "length": self.stored.prompt.shape[0],
            "fingerprint": metadata.get("fingerprint"),
            "labels": list(self.labels),
            "fields": list(self.form.fields),
            **scores,
        }


@dataclass(frozen=True)
class PromptSet:
    """Prompts by name, and the bank that has them.

    Args:
        bank: The bank.
        prompts: What is known of each, by its name.
    """

    bank: PromptBank
    prompts: Mapping[str, LoadedPrompt]

    def add(self, name: str, prompt: LoadedPrompt) -> "PromptSet":
        """Return the set with one more prompt; raises ValueError as `PromptBank.add`."""
        bank = self.bank.add(name, prompt.stored.prompt)
        return PromptSet(bank, {**self.prompts, name: prompt})

    def remove(self, name: str) -> "PromptSet":
        """Return the set without a prompt; raises ValueError as `PromptBank.remove`."""
        bank = self.bank.remove(name)
        return PromptSet(bank, {key: p for key, p in self.prompts.items() if key != name})


def load_prompt_set(
    backbone: Backbone,
    paths: Mapping[str, str | Path],
    *,
    targets_length: int,
    capacity: int,
    length: int | None,
) -> PromptSet:
    """Load the prompts that a server starts with.

    Args:
        backbone: The frozen model.
        paths: Path of each prompt by its name, in any format and place that `read_prompt` takes.
        targets_length: Most tokens of a label word, with its end marker.
        capacity: Most prompts at a time.
        length: Most vectors of a prompt; by default those of the longest. Without any prompt, 100
            if there is room for one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name is not allowed, or a prompt is refused; see `load_bank`.
    """
    for name in paths:
        require_name(name)
    loaded = {name: load(path, backbone, targets_length) for name, path in paths.items()}
    if length is None:
        of_none = 100 if capacity else 0
        length = max((len(prompt.stored.prompt) for prompt in loaded.values()), default=of_none)
    prompts = PromptSet(PromptBank.empty(capacity, length, backbone.model.config.d_model), {})
    for name, prompt in loaded.items():
        prompts = prompts.add(name, prompt)
    return prompts


def load(path: str | Path, backbone: Backbone, targets_length: int) -> LoadedPrompt:
    """Read a prompt and the label words of its run, and check that it fits the model.

    Raises:
        FileNotFoundError, ValueError: See `load_bank` and `encode_answers`.
    """
    with open_run(Path(path)) as place:
        stored = read_prompt(place)
        facts = RunFolder(place).read_manifest().get("data", {})
    stored.require_backbone(backbone)
    words = facts.get("label_words") if isinstance(facts, Mapping) else None
    labels = _texts(words)
    form = form_of(stored.metadata)
    answers = encode_answers(
        labels, backbone.tokenizer, targets_length, sentinel=form.sentinel_targets
    )
    return LoadedPrompt(stored, form, labels, answers)


def require_name(name: str) -> str:
    """Return the name of a prompt unchanged where it is allowed.

    Raises:
        ValueError: It has other characters than letters, digits, `.`, `_` and `-`, begins with
            another one than a letter or digit, or has more than 64.
    """
    require(
        bool(NAME.fullmatch(name)),
        f"the name of a prompt is {ascii(name[:80])}, expected 1 to 64 letters, digits, '.', '_' "
        "or '-', the first a letter or digit",
    )
    return name


def find_prompt(folder: Path, name: str, bank: PromptBank) -> Path:
    """Return where a prompt of this name is in the folder: `NAME`, a run, or `NAME.safetensors`.

    Args:
        folder: The folder that the server may load prompts from.
        name: Name, from a request.
        bank: The bank that will hold the prompt. A file with more vectors than it holds is not
            read.

    Raises:
        FileNotFoundError: The folder has no such prompt.
        ValueError: The name is not allowed, a link leads out of the folder, or the file is larger
            than any prompt that the bank holds.
    """
    require_name(name)
    file, path = safe_join(folder, f"{name}.safetensors"), safe_join(folder, name)
    run = RunFolder(path)
    if not file.is_file():
        for part in (run.prompt_file, run.config_file, run.manifest_file):
            safe_join(folder, f"{name}/{part.name}")
        if not run.prompt_file.is_file():
            raise FileNotFoundError(
                f"there is no prompt '{name}' to load; expected {name}.safetensors, or {name}, the "
                "folder of a run, in the folder of prompts"
            )
        require(
            not (path / "adapter_config.json").exists(),
            f"'{name}' is the adapter of PEFT; give a run, or a prompt.safetensors",
        )
        file = run.prompt_file
    else:
        path = file
    _, length, d_model = bank.arrays.vectors.shape
    most, size = 4 * length * d_model + _ROOM_FOR_METADATA, file.stat().st_size
    require(
        size <= most,
        f"the file of prompt '{name}' has {size:,} bytes, expected at most {most:,} for {length} "
        f"vectors of {d_model} numbers",
    )
    return path


def _texts(words: Any) -> tuple[str, ...]:
    is_list = isinstance(words, Sequence) and not isinstance(words, str)
    return tuple(words) if is_list and all(isinstance(word, str) for word in words) else ()


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) else None
