"""Scores of predicted texts, from 0 to 100 (correlations from -100).

A metric is a function of the predictions, the examples and the label words. A task names its
metrics, and their mean is its score: what the best step is chosen by, and what is averaged into a
SuperGLUE score (Lester et al. 2021, section 3).
"""

from collections.abc import Mapping, Sequence

from spt_jax.data.example import Example, Task
from spt_jax.errors import suggest
from spt_jax.evaluation.metrics.classes import accuracy, f1, group_exact_match, macro_f1, matthews
from spt_jax.evaluation.metrics.numbers import pearson, spearman, unreadable_share
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
    """The scores of a task.

    Args:
        names: Of `METRICS`.
        predictions: One text for each example.
        examples: What was to be written.
        label_words: Those of the task in the order of its labels; None for free text.

    Returns:
        Score by name; `squad` gives two, `exact_match` and `f1`.

    Raises:
        ValueError: A metric is unknown or does not fit the label words, there are no examples, or
            not as many predictions.
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
    """The one score of a task: the mean of its metrics."""
    return sum(scores.values()) / len(scores)


def invalid(
    names: Sequence[str], predictions: Sequence[str], label_words: Sequence[str] | None
) -> float | None:
    """Percentage of predictions that are no label word, or no number where one is asked for.

    None for free text, where nothing is invalid.
    """
    if {"pearson", "spearman"} & {*names}:
        return unreadable_share(predictions)
    return invalid_share(predictions, label_words) if label_words else None


def superglue_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The SuperGLUE score: the mean over the eight tasks of the mean of each one's metrics.

    Args:
        scores: The metrics by task, such as {"super_glue/cb": {"macro_f1": 99.0, ...}, ...}, or
            the scores of several runs of each.

    Raises:
        ValueError: A task is missing, or there is one that does not count.
    """
    missing = [name for name in SUPERGLUE if name not in scores]
    others = [name for name in scores if name not in SUPERGLUE]
    if missing or others:
        raise ValueError(
            f"a SuperGLUE score is of {len(SUPERGLUE)} tasks, {', '.join(SUPERGLUE)}; "
            f"missing: {', '.join(missing) or 'none'}; too many: {', '.join(others) or 'none'}"
        )
    return sum(mean_score(scores[name]) for name in SUPERGLUE) / len(SUPERGLUE)
