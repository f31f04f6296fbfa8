"""Ensembles of prompts: several prompts of one task on one frozen model (Lester et al. 2021, 6).

Where an ensemble of N tuned models is N models, this is one model and N small arrays: every row is
answered once with each prompt, in the same batches, and the answers are put together.
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
    """The answer of each row that most prompts give; white space makes no difference.

    Of answers with equally many votes it is the one whose first vote comes first in the order of
    the prompts.

    Args:
        predictions: Of each prompt, a text for each row.
    """
    votes_of_rows = zip(*predictions, strict=True)
    # most_common keeps equal counts in the order in which they were first met.
    return [Counter(map(normalize, votes)).most_common(1)[0][0] for votes in votes_of_rows]


def combine(outputs: Sequence[Outputs]) -> Outputs:
    """The votes of prompts of one task, and the mean of their log-probabilities."""
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
) -> dict:
    """Scores runs of one task and their ensemble, as in table 3 of the paper.

    Args:
        runs: Folders of two or more runs that share task and frozen model, such as those of
            different seeds.
        split: `train`, `dev` or `test`.
        by: `vote`: what most prompts write, scored by `score`; `log_probs`: the label word whose
            log-probability is highest on average over the prompts, scored by `rank_score`.
        mesh: How devices share the work; see `automesh` where None.

    Returns:
        `average` and `best` of the runs and the `ensemble`, all by the same score, and `runs`, the
        scores of each. The best run is the best on these very rows.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: The runs have no model or no task in common, or there are no label words to
            average over.
    """
    require(by in ("vote", "log_probs"), f"by is '{by}', expected one of vote, log_probs")
    require(
        len(runs) > 1, f"an ensemble of {len(runs)} run is given, expected two or more of one task"
    )
    group = load_group(runs, split, mesh=mesh)
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
