"""Successive halving: at each rung, the worse half of a study's points ends.

A rung is a step at which runs are evaluated anyway, so a run that survives is the run that it would
have been without halving. What a rung decides follows from the logs up to that step alone. So a
sweep that was killed decides the same again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from spt_jax.config.train import TrainConfig
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.studies.grid import StudyRun

SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of a run's steps at which its rungs are, rounded up to the next evaluation."""

Score = tuple[float, float]
"""A score and a rank score on dev; the second decides between equal first ones."""


def rung_step(config: TrainConfig, rung: int) -> int:
    """Return the step of a rung, counted from 0: at most the last step of the run."""
    every = config.eval.every
    return min(math.ceil(SHARES[rung] * config.steps / every) * every, config.steps)


def dev_score(run: StudyRun, folder: Path, step: int) -> Score | None:
    """Return the best scores of a run on dev up to a step, or None if it was not trained so far.

    Args:
        run: The run.
        folder: Folder of the sweep.
        step: A step at which the run is evaluated.
    """
    file = RunFolder(folder / run.name).log_file
    lines = [line for line in read_log(file) if line.get("split") == "dev"] if file.exists() else []
    if not any(line["step"] >= step for line in lines):
        return None
    return max((_pair(line) for line in lines if line["step"] <= step), default=None)


def _pair(line: Mapping) -> Score:
    rank = line.get("rank_score")
    return float(line["score"]), -math.inf if rank is None else float(rank)


def worse_half(runs: Sequence[StudyRun], scores: Mapping[str, Score]) -> list[StudyRun]:
    """Return the runs of the points that end, of each task the worse half of its points.

    A point is a combination without its seed, and counts with the mean over its seeds. Of an odd
    number of points, the smaller half ends. The earlier of equal points stays.

    Args:
        runs: Runs that are still in the study.
        scores: Scores on dev at the rung, by the name of the run. A run without any does not count.
    """
    tasks: dict[str, dict[str, list[StudyRun]]] = {}
    for run in runs:
        if run.name in scores:
            points = tasks.setdefault(repr(run.config.task), {})
            points.setdefault(run.point, []).append(run)
    ended: list[StudyRun] = []
    for points in tasks.values():
        means = {name: _mean(scores[run.name] for run in of) for name, of in points.items()}
        ranked = sorted(points, key=lambda name: means[name], reverse=True)
        for name in ranked[math.ceil(len(ranked) / 2) :]:
            ended += points[name]
    return ended


def _mean(pairs: Iterable[Score]) -> Score:
    first, second = np.mean(list(pairs), axis=0)
    return float(first), float(second)
