"""Scores of classifications. A text that is not a label word is a class that is always wrong."""

from collections import defaultdict

import numpy as np

from spt_jax.evaluation.metrics.texts import (
    Examples,
    Scores,
    Texts,
    Words,
    exact_match,
    normalize,
)

INVALID = -1


def accuracy(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the percentage of predictions that equal their target."""
    return {"accuracy": exact_match(predictions, [e.targets for e in examples])}


def f1(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return F1 of the second of two label words. An invalid prediction counts as the wrong one."""
    if label_words is None or len(label_words) != 2:
        raise ValueError(f"f1 is of two label words, given {label_words}; use macro_f1")
    truth, predicted = _classes(predictions, examples, label_words)
    predicted = np.where(predicted == INVALID, 1 - truth, predicted)
    return {"f1": 100 * _f1(truth, predicted, 1)}


def macro_f1(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the mean of the F1 of each label word (CB). A word that is never used has F1 0."""
    if not label_words:
        raise ValueError("macro_f1 is of label words, given none; use squad for free text")
    truth, predicted = _classes(predictions, examples, label_words)
    scores = [_f1(truth, predicted, label) for label in range(len(label_words))]
    return {"macro_f1": 100 * float(np.mean(scores))}


def group_exact_match(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the percentage of groups (MultiRC: questions) whose predictions are all right."""
    right: dict[str, bool] = defaultdict(lambda: True)
    for prediction, example in zip(predictions, examples, strict=True):
        right[example.group] &= normalize(prediction) == normalize(example.targets)
    return {"group_exact_match": 100 * sum(right.values()) / len(right)}


def matthews(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the Matthews correlation times 100, or 0 where it is undefined.

    Invalid predictions are a class of their own.
    """
    if not label_words:
        raise ValueError("matthews is of label words, given none; use pearson for numbers")
    truth, predicted = _classes(predictions, examples, label_words)
    labels = np.arange(INVALID, len(label_words))[:, None]
    truths, guesses = (truth == labels).sum(1), (predicted == labels).sum(1)
    right, rows = int((truth == predicted).sum()), len(truth)
    spread = float(rows**2 - guesses @ guesses) * float(rows**2 - truths @ truths)
    covariance = float(right * rows - truths @ guesses)
    return {"matthews": 100 * covariance / spread**0.5 if spread else 0.0}


def _classes(
    predictions: Texts, examples: Examples, label_words: Texts
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label numbers of the targets and of the predictions, each int64[rows]."""
    index = {normalize(word): number for number, word in enumerate(label_words)}
    truth = [index.get(normalize(example.targets), INVALID) for example in examples]
    if INVALID in truth:
        wrong = examples[truth.index(INVALID)].targets
        raise ValueError(f"target '{wrong}' is no label word, expected {', '.join(label_words)}")
    return np.array(truth), np.array([index.get(normalize(p), INVALID) for p in predictions])


def _f1(truth: np.ndarray, predicted: np.ndarray, label: int) -> float:
    hits = int(((truth == label) & (predicted == label)).sum())
    used = int((truth == label).sum() + (predicted == label).sum())
    return 2 * hits / used if used else 0.0
