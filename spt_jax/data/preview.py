"""What a model will read: examples as text and as tokens, and how long all of them are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example, Task
from spt_jax.tokenizers.base import Tokenizer

PERCENTILES = (50, 90, 95, 99, 100)


def preview(task: Task, tokenizer: Tokenizer, data: DataConfig, count: int) -> dict[str, Any]:
    """The first examples of each split, and length percentiles against the configured lengths.

    Args:
        task: With its splits.
        tokenizer: Of the model.
        data: The configured lengths.
        count: Examples of each split.

    Returns:
        `task`, `label_words`, `metrics`, `notes`, `lengths` (a row for each split and side: its
        tokens with the end marker at each percentile, the configured length, and the percentage
        that is cut to it) and `examples`.
    """
    lengths: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for split, rows in task.splits.items():
        lengths += _lengths(split, rows, tokenizer, data)
        examples += [{"split": split, **_show(e, tokenizer)} for e in rows[:count]]
    return {
        "task": task.name,
        "label_words": task.label_words,
        "metrics": task.metrics,
        "notes": task.notes,
        "lengths": lengths,
        "examples": examples,
    }


def _lengths(
    split: str, rows: Sequence[Example], tokenizer: Tokenizer, data: DataConfig
) -> list[dict[str, Any]]:
    sides = {
        "inputs": ([e.inputs for e in rows], data.inputs_length),
        "targets": ([e.targets for e in rows], data.targets_length),
    }
    found = []
    for side, (texts, length) in sides.items():
        counts = np.array([len(ids) + 1 for ids in tokenizer.encode_batch(texts)])
        counts.sort()
        # The smallest length that holds so many percent of the rows.
        percentiles = {
            f"p{p}" if p < 100 else "max": int(counts[math.ceil(len(counts) * p / 100) - 1])
            for p in PERCENTILES
        }
        cut = 100 * float((counts > length).mean())
        found.append(
            {"split": split, "side": side, **percentiles, "configured": length, "cut": cut}
        )
    return found


def _show(example: Example, tokenizer: Tokenizer) -> Mapping[str, Any]:
    def tokens(text: str) -> list[str]:
        return [tokenizer.piece(i) for i in [*tokenizer.encode(text), tokenizer.eos_id]]

    shown: dict[str, Any] = {
        "inputs": example.inputs,
        "input_tokens": tokens(example.inputs),
        "targets": example.targets,
        "target_tokens": tokens(example.targets),
    }
    return shown | ({"answers": example.answers} if len(example.answers) > 1 else {})
