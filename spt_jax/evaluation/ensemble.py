"""Ensembles of prompts: several prompts of one task on one frozen model (Lester et al. 2021, 6).

An ensemble of N tuned models takes N models; this takes one model and N small arrays. Every row is
answered once with each prompt, in the same batches, and the answers are combined.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from spt_jax.config.devices import MeshConfig
from spt_jax.errors import require
from spt_jax.evaluation.evaluate import RunGroup, load_group
from spt_jax.evaluation.metrics import normalize
from spt_jax.evaluation.scores import Outputs, score


def vote(predictions: Sequence[Sequence[str]]) -> list[str]:
    """Return for each row the answer that most prompts give; white space makes no difference.

    A tie goes to the answer that an earlier prompt gives.

    Args:
        predictions: For each prompt, a text for each row.
    """
    votes_of_rows = zip(*predictions, strict=True)
    # most_common keeps answers of equal counts in the order of their first votes.
    return [Counter(map(normalize, votes)).most_common(1)[0][0] for votes in votes_of_rows]


def combine(outputs: Sequence[Outputs]) -> Outputs:
    """Return the votes of prompts of one task, and the mean of their log-probabilities."""
    log_probs = [found.log_probs for found in outputs if found.log_probs is not None]
    return Outputs(
        predictions=tuple(vote([found.predictions for found in outputs])),
        log_probs=np.mean(log_probs, axis=0) if log_probs else None,
    )


def evaluate_ensemble(
    runs: Sequence[Path],
    split: str,
    by: Literal["vote", "log_probs"] = "vote",
    *,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
) -> dict:
    """Score runs of one task and their ensemble, as in table 3 of the paper.

    Args:
        runs: Folders of two or more runs that share task and frozen model, such as those of
            different seeds.
        split: `train`, `dev` or `test`.
        by: `vote` takes what most prompts write and compares by `score`. `log_probs` takes the
            label word with the highest mean log-probability and compares by `rank_score`.
        mesh: How devices share the work; `automesh` decides if None.
        fetch: Names in the configs that may be fetched from the network; see `evaluate_run`.

    Returns:
        `average` and `best` of the runs and the `ensemble`, all by the same score, and `runs`, the
        scores of each. The best run is chosen on the same rows that it is scored on.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: The runs have no model or no task in common, or there are no label words to
            average over.
    """
    require(by in ("vote", "log_probs"), f"by is '{by}', expected one of vote, log_probs")
    require(
        len(runs) > 1, f"an ensemble of {len(runs)} run is given, expected two or more of one task"
    )
    group = load_group(runs, split, mesh=mesh, fetch=fetch)
    _require_one_task(group, split)
    task, rows = group.tasks[0], group.rows[0]
    require(
        by == "vote" or bool(task.label_words),
        f"task '{task.name}' is free text, without label words to average over; use vote",
    )
    outputs = group.answer()
    of_runs = [score(rows, found) for rows, found in zip(group.rows, outputs, strict=True)]
    of_ensemble = score(rows, combine(outputs))
    metric = "score" if by == "vote" else "rank_score"
    scores = [getattr(found, metric) for found in of_runs]
    return {
        "task": task.name,
        "split": split,
        "rows": of_ensemble.rows,
        "by": by,
        "average": statistics.mean(scores),
        "best": max(scores),
        "ensemble": getattr(of_ensemble, metric),
        "runs": {name: found.to_dict() for name, found in zip(group.names, of_runs)},
    }


def _require_one_task(group: RunGroup, split: str) -> None:
    first = group.tasks[0]
    for name, task in zip(group.names, group.tasks):
        if (task.splits[split], task.label_words) != (first.splits[split], first.label_words):
            raise ValueError(
                f"run '{name}' is of task '{task.name}' and '{group.names[0]}' of '{first.name}', "
                "whose rows or label words differ; an ensemble has prompts of one task"
            )
        if task.metrics != first.metrics:
            raise ValueError(
                f"run '{name}' is scored by {', '.join(task.metrics)} and '{group.names[0]}' by "
                f"{', '.join(first.metrics)}; an ensemble has one score, so evaluate them apart"
            )
