"""Scores of numbers that were written as text (STS-B)."""

import math
from collections.abc import Sequence

import numpy as np

from spt_jax.data.example import Example
from spt_jax.errors import shorten

UNREADABLE = -1.0  # what a text that is no number counts as, as in T5's own evaluation


def pearson(
    predictions: Sequence[str], examples: Sequence[Example], label_words: Sequence[str] | None
) -> dict[str, float]:
    """Pearson correlation times 100; 0 where either side is constant and it is undefined."""
    return {"pearson": 100 * _correlation(*_numbers(predictions, examples))}


def spearman(
    predictions: Sequence[str], examples: Sequence[Example], label_words: Sequence[str] | None
) -> dict[str, float]:
    """Rank correlation times 100, ties sharing their mean rank; 0 where it is undefined."""
    predicted, truth = _numbers(predictions, examples)
    return {"spearman": 100 * _correlation(_ranks(predicted), _ranks(truth))}


def unreadable_share(predictions: Sequence[str]) -> float:
    """Percentage of predictions that are no finite number."""
    return 100 * sum(_read(text) is None for text in predictions) / len(predictions)


def _numbers(
    predictions: Sequence[str], examples: Sequence[Example]
) -> tuple[np.ndarray, np.ndarray]:
    """float64[rows] of predictions and targets."""
    predicted = [_read(text) for text in predictions]
    truth = [_read(example.targets) for example in examples]
    if None in truth:
        wrong = examples[truth.index(None)].targets
        raise ValueError(f"target '{shorten(wrong)}' is no number; use another metric")
    return (
        np.array([UNREADABLE if value is None else value for value in predicted]),
        np.array(truth, float),
    )


def _read(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """float64[rows], counted from 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # 1e300 must not overflow when squared
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return float(np.clip(x @ y / spread, -1, 1)) if spread else 0.0
