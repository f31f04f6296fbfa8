"""Scores of numbers that were written as text (STS-B).

They are computed with numpy, because importing `scipy.stats` would take each command a second.
"""

import math

import numpy as np

from spt_jax.errors import shorten
from spt_jax.evaluation.metrics.texts import Examples, Scores, Texts, Words

UNREADABLE = -1.0  # value of a prediction that is not a finite number, as in T5's own evaluation


def pearson(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the Pearson correlation times 100, or 0 if either side is constant."""
    return {"pearson": 100 * _correlation(*_numbers(predictions, examples))}


def spearman(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the rank correlation times 100, or 0 if either side is constant.

    Equal numbers share the mean of their ranks.
    """
    return {"spearman": 100 * _correlation(*map(_ranks, _numbers(predictions, examples)))}


def unreadable_share(predictions: Texts) -> float:
    """Return the percentage of predictions that are not a finite number."""
    return 100 * sum(_read(text) is None for text in predictions) / len(predictions)


def _numbers(predictions: Texts, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions and the targets, each float64[rows]."""
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
    """Return the rank of each value from 1, float64[rows]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    # Scaled to at most 1, because 1e300 would overflow when it is squared.
    x, y = (values / (np.abs(values).max() or 1.0) for values in (x, y))
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
