"""PEFT's folder of a prompt for T5: adapter_config.json and adapter_model.safetensors.

The tensor is `prompt_embeddings`, [P, D] or [2P, D]. PEFT counts encoder and decoder as submodules,
two by default, but puts the first P rows in front of the encoder's input and never uses the rest.
P-tuning stores the output of its prompt encoder, so it is read in the same way. Multitask prompt
tuning (Wang et al. 2023) has a product of two matrices for every task besides, [tasks, P, R] and
[tasks, R, D], by which the shared rows are multiplied: such a task folds into a prompt. With two
submodules PEFT gives these to the decoder too, so that only one submodule is a prompt of ours.

We write [P, D] and one submodule. The metadata of a prompt (task, scores, fingerprint) goes into
the tensor file, where PEFT ignores it; PEFT refuses a config with unknown entries.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from spt_jax.models.formats.safetensors_file import open_safetensors
from spt_jax.models.hub import is_hub_id
from spt_jax.prompts.file import with_sorted_header
from spt_jax.tokenizers.published import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = "prompt_embeddings"
_MULTITASK = "MULTITASK_PROMPT_TUNING"
_FACTORS = ("prefix_task_cols", "prefix_task_rows")
_READABLE = ("PROMPT_TUNING", "P_TUNING", _MULTITASK)
_REFUSED = {
    "PREFIX_TUNING": "puts keys and values into every layer of the model, not a prompt in front "
    "of its input",
    "CPT": "is of decoder-only models",
}


def read_peft(folder: Path, task: int | None = None) -> tuple[np.ndarray, dict[str, str]]:
    """Read the prompt of an adapter, and what its config and tensor file say of it.

    Args:
        folder: Folder of the adapter.
        task: Number of the task of a multitask adapter; it may be None where there is one.

    Returns:
        The prompt, float32 [P, D], its values not checked, and metadata, in which `model` is PEFT's
        base model with its revision, as `--model` takes it.

    Raises:
        FileNotFoundError: A file of the adapter is missing.
        ValueError: The adapter is damaged, of another type, or not for an encoder-decoder, or it
            has no such task.
    """
    config = read_json(folder / CONFIG)
    length = _length(folder / CONFIG, config)
    path = folder / TENSORS
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        if pickled.is_file():
            raise ValueError(
                f"{pickled} is a pickle, which is never loaded; save the adapter again with "
                "PEFT's save_pretrained(safe_serialization=True)"
            )
        raise FileNotFoundError(
            f"adapter {folder} has no {TENSORS}; expected it beside {CONFIG}, copy the whole folder"
        )
    multitask = config["peft_type"] == _MULTITASK
    if task is not None and not multitask:
        raise ValueError(
            f"adapter {folder} has one prompt, but task {task} of it is asked for; leave '#{task}' "
            "out"
        )
    tensors, metadata = _tensors(path, (_TENSOR, *_FACTORS) if multitask else (_TENSOR,))
    rows = tensors[_TENSOR]
    _check_shape(path, rows.shape, length, config)
    if multitask:
        if len(rows) != length:
            raise ValueError(
                f"adapter {folder} has vectors for the decoder too (num_transformer_submodules 2), "
                "which no prompt here has; expected one with num_transformer_submodules 1"
            )
        rows = rows * _product(path, tensors, rows.shape, task)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(base, str) and base:
        pinned = isinstance(revision, str) and revision and is_hub_id(base)
        metadata.setdefault("model", f"{base}@{revision}" if pinned else base)
    return rows[:length].astype(np.float32), metadata


def peft_files(
    prompt: np.ndarray, metadata: Mapping[str, str], base: str | None
) -> dict[str, bytes]:
    """Return the files of an adapter that PEFT loads, by name.

    Args:
        prompt: Prompt, float32 [P, D].
        metadata: Metadata of the prompt.
        base: Name of the model as transformers loads it, or `owner/model@revision`, if known.
    """
    revision = None
    if base is not None and is_hub_id(base) and "@" in base:
        base, _, revision = base.partition("@")
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": None,  # prompt tuning does not use these two
        "num_layers": None,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.shape[0],
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": revision,
        "task_type": "SEQ_2_SEQ_LM",
        "token_dim": prompt.shape[1],
        "tokenizer_name_or_path": None,
    }
    tensors = safetensors.numpy.save({_TENSOR: prompt}, {**metadata, "format": "pt"})
    return {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
        TENSORS: with_sorted_header(tensors),
    }


def _length(path: Path, config: Mapping[str, Any]) -> int:
    kind, task, length = (
        config.get(key) for key in ("peft_type", "task_type", "num_virtual_tokens")
    )
    if kind not in _READABLE:
        reason = _REFUSED.get(kind, "is no prompt") if isinstance(kind, str) else "is no prompt"
        raise ValueError(
            f"adapter {path} has peft_type {kind!r}, which {reason}; "
            f"expected {' or '.join(_READABLE)}"
        )
    if task != "SEQ_2_SEQ_LM":
        raise ValueError(
            f"adapter {path} has task_type {task!r}, expected 'SEQ_2_SEQ_LM': "
            "a prompt for the encoder of a T5"
        )
    if type(length) is not int or length < 1:
        raise ValueError(
            f"adapter {path} has num_virtual_tokens {length!r}, expected a whole number from 1"
        )
    return length


def _product(
    path: Path, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], task: int | None
) -> np.ndarray:
    """Return what the shared rows of a multitask adapter are multiplied by for a task."""
    columns, rows = (tensors[name].astype(np.float32) for name in _FACTORS)
    count = len(columns) if columns.ndim == 3 else 0
    ranks = columns.shape[2:]
    if count == 0 or columns.shape[1] != shape[0] or rows.shape != (count, *ranks, shape[1]):
        raise ValueError(
            f"{path} has {_FACTORS[0]} {list(columns.shape)} and {_FACTORS[1]} "
            f"{list(rows.shape)}, expected [tasks, {shape[0]}, R] and [tasks, R, {shape[1]}]"
        )
    if task is None and count > 1 or task is not None and task >= count:
        given = "no task is named" if task is None else f"task {task} is asked for"
        raise ValueError(
            f"adapter {path.parent} has {count} tasks and {given}; give one as "
            f"'{path.parent}#0' to '{path.parent}#{count - 1}'"
        )
    return columns[task or 0] @ rows[task or 0]


def _tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors = open_safetensors(path)
    if sorted(tensors) != sorted(names):
        raise ValueError(
            f"{path} holds the tensors {sorted(tensors)}, expected '{' and '.join(names)}' alone; "
            "an adapter that trained other weights too is no prompt"
        )
    for tensor in tensors.values():
        if tensor.dtype == np.float64:
            raise ValueError(
                f"{path} holds float64 {list(tensor.shape)}, expected float32, bfloat16 or float16"
            )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(sorted((file.metadata() or {}).items()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    metadata.pop("format", None)
    return {name: tensors[name].read() for name in names}, metadata


def _check_shape(
    path: Path, shape: tuple[int, ...], length: int, config: Mapping[str, Any]
) -> None:
    stated, width = config.get("num_transformer_submodules"), config.get("token_dim")
    counts = (1, 2) if stated is None else (stated,)
    if len(shape) != 2 or 0 in shape or shape[0] not in [length * n for n in (1, 2) if n in counts]:
        raise ValueError(
            f"{path} has shape {list(shape)}, but {CONFIG} says num_virtual_tokens {length} and "
            f"num_transformer_submodules {stated}; expected [{length}, D] or [{2 * length}, D]"
        )
    if width is not None and width != shape[1]:
        raise ValueError(
            f"{path} has vectors of {shape[1]} numbers, but {CONFIG} says token_dim {width}; "
            "the two files are of different adapters"
        )
