"""What a model will read: examples as text and as tokens, and how long all of them are."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example, Task
from spt_jax.data.pipeline import encode_inputs, encode_targets
from spt_jax.tokenizers.base import Tokenizer

PERCENTILES = (50, 90, 95, 99, 100)


def preview(
    task: Task,
    tokenizer: Tokenizer,
    data: DataConfig,
    count: int,
    longest: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The first examples of each split, and length percentiles against the configured lengths.

    Args:
        task: With its splits.
        tokenizer: Of the model.
        data: The configured lengths, and whether a sentinel is in front of the targets.
        count: Examples of each split.
        longest: Most tokens of an input by split, where that is not `data.inputs_length`.

    Returns:
        `task`, `label_words`, `metrics`, `notes`, `lengths` (a row for each split and side: its
        tokens with the end marker at each percentile, the configured length or None, and the
        percentage that is cut to it) and `examples`.
    """
    lengths: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for split, rows in task.splits.items():
        length = (longest or {}).get(split, data.inputs_length)
        lengths += _lengths(split, rows, tokenizer, length, data)
        examples += [{"split": split, **_show(e, tokenizer, data)} for e in rows[:count]]
    return {
        "task": task.name,
        "label_words": task.label_words,
        "metrics": task.metrics,
        "notes": task.notes,
        "lengths": lengths,
        "examples": examples,
    }


def _lengths(
    split: str,
    rows: Sequence[Example],
    tokenizer: Tokenizer,
    inputs_length: int,
    data: DataConfig,
) -> list[dict[str, Any]]:
    texts = [example.targets for example in rows]
    targets = encode_targets(texts, tokenizer, sentinel=data.sentinel_targets)
    sides = {
        "inputs": (encode_inputs(rows, tokenizer), inputs_length),
        "targets": (targets, data.targets_length),
    }
    found = []
    for side, (encoded, length) in sides.items():
        counts = np.array([len(ids) + 1 for ids in encoded])
        counts.sort()
        # The smallest length that holds so many percent of the rows.
        percentiles = {
            f"p{p}" if p < 100 else "max": int(counts[math.ceil(len(counts) * p / 100) - 1])
            for p in PERCENTILES
        }
        cut = 100 * float((counts > length).mean())
        limit = None if length == sys.maxsize else length
        found.append({"split": split, "side": side, **percentiles, "configured": limit, "cut": cut})
    return found


def _show(example: Example, tokenizer: Tokenizer, data: DataConfig) -> Mapping[str, Any]:
    def tokens(ids: Sequence[int]) -> list[str]:
        return [tokenizer.piece(i) for i in [*ids, tokenizer.eos_id]]

    [target] = encode_targets([example.targets], tokenizer, sentinel=data.sentinel_targets)
    shown: dict[str, Any] = {
        "inputs": example.inputs,
        "input_tokens": tokens(encode_inputs([example], tokenizer)[0]),
        "targets": example.targets,
        "target_tokens": tokens(target),
    }
    return shown | ({"answers": example.answers} if len(example.answers) > 1 else {})
