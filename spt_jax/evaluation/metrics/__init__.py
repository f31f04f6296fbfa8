"""Scores of predicted texts, from 0 to 100 (correlations from -100).

A metric is a function of the predictions, the examples and the label words. A task names its
metrics. Their mean is the score of the task, which chooses the best step and is averaged into a
SuperGLUE score (Lester et al. 2021, section 3).
"""

from collections.abc import Mapping, Sequence

from spt_jax.data.example import Example, Task
from spt_jax.errors import suggest
from spt_jax.evaluation.metrics.classes import accuracy, f1, group_exact_match, macro_f1, matthews
from spt_jax.evaluation.metrics.numbers import pearson, spearman, unreadable_share
from spt_jax.evaluation.metrics.rouge import rouge
from spt_jax.evaluation.metrics.texts import (
    Metric,
    exact_match,
    invalid_share,
    normalize,
    squad,
    squad_by_group,
    wsc,
)

__all__ = [
    "METRICS",
    "SUPERGLUE",
    "Metric",
    "check_metrics",
    "compute",
    "exact_match",
    "invalid",
    "invalid_share",
    "mean_score",
    "normalize",
    "superglue_score",
]

METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        accuracy,
        f1,
        macro_f1,
        group_exact_match,
        matthews,
        squad,
        squad_by_group,
        wsc,
        pearson,
        spearman,
        rouge,
    )
}
SUPERGLUE = tuple(
    f"super_glue/{name}"
    for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
)


def compute(
    names: Sequence[str],
    predictions: Sequence[str],
    examples: Sequence[Example],
    label_words: Sequence[str] | None,
) -> dict[str, float]:
    """Compute the scores of a task.

    Args:
        names: Keys of `METRICS`.
        predictions: One text for each example.
        examples: Examples with the expected texts.
        label_words: Label words of the task in the order of its labels, or None for free text.

    Returns:
        Scores by name. `squad` gives two, `exact_match` and `f1`; `rouge` gives three.

    Raises:
        ValueError: A metric is unknown or does not fit the label words, there are no examples, or
            the number of predictions differs from the number of examples.
    """
    if not examples or len(predictions) != len(examples):
        raise ValueError(
            f"{len(predictions)} predictions are given for {len(examples)} examples; "
            "expected one for each, and at least one"
        )
    scores: dict[str, float] = {}
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"unknown metric '{name}'; expected one of {', '.join(METRICS)}"
                f"{suggest(name, METRICS)}"
            )
        scores |= METRICS[name](predictions, examples, label_words)
    return scores


def check_metrics(task: Task) -> None:
    """Check that the metrics of a task fit its rows, before anything is trained.

    Raises:
        ValueError: One is unknown, or needs label words, numbers, groups or a task of the papers.
    """
    for split in ("dev", "test"):
        examples = task.splits[split]
        for name in task.metrics:
            if name.startswith(("group_", "squad_by_")) and not all(e.group for e in examples):
                raise ValueError(
                    f"metric '{name}' scores rows of one group together, but rows of {split} have "
                    "none; set task.group to a field that they have in common"
                )
            if name == "wsc" and any(e.label is None for e in examples):
                raise ValueError("metric 'wsc' is of the task super_glue/wsc alone; use accuracy")
        compute(task.metrics, [e.targets for e in examples], examples, task.label_words)


def mean_score(scores: Mapping[str, float]) -> float:
    """Return the score of a task, the mean of its metrics."""
    return sum(scores.values()) / len(scores)


def invalid(
    names: Sequence[str], predictions: Sequence[str], label_words: Sequence[str] | None
) -> float | None:
    """Return the percentage of predictions that are not a label word, or not a number.

    Return None for free text, where every prediction is valid.
    """
    if {"pearson", "spearman"} & {*names}:
        return unreadable_share(predictions)
    return invalid_share(predictions, label_words) if label_words else None


def superglue_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the SuperGLUE score: the mean over the eight tasks of the mean of their metrics.

    Args:
        scores: Metrics by task, such as {"super_glue/cb": {"macro_f1": 99.0, ...}, ...}, or the
            scores of several runs by task.

    Raises:
        ValueError: A task is missing, or a task is not part of SuperGLUE.
    """
    missing = [name for name in SUPERGLUE if name not in scores]
    others = [name for name in scores if name not in SUPERGLUE]
    if missing or others:
        raise ValueError(
            f"a SuperGLUE score is of {len(SUPERGLUE)} tasks, {', '.join(SUPERGLUE)}; "
            f"missing: {', '.join(missing) or 'none'}; too many: {', '.join(others) or 'none'}"
        )
    return sum(mean_score(scores[name]) for name in SUPERGLUE) / len(SUPERGLUE)
