"""Read the runs below a folder into plain rows: what varies between them, their scores and costs.

What varies is found by comparing the configs, so the runs may come from `spt-jax sweep` or from any
other command. A run counts once it is finished. Every other run is listed with the reason why it
does not count.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.config.fields import flatten, from_dict, to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.errors import one_line
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.runs.workdir import find_address
from spt_jax.studies.grid import RESULTS_FILE, WITHOUT_EFFECT

NEEDED = {
    "task": str,
    "score": int | float,
    "dev_score": int | float,
    "best_step": int,
    "steps": int,
    "trained_params": int,
}
"""Values of a result without which a run does not count, and their types."""


@dataclass(frozen=True)
class RunRow:
    """A finished run.

    Args:
        run: Its folder, relative to the folder of the study.
        task: Name of its task.
        seed: Its seed.
        values: Its options among those that vary, by their dotted names.
        score: Score on test at the step that is best on dev, 0 to 100.
        rank_score: Rank score on test at that step, or None for free text.
        dev_score: Score on dev at that step.
        best_step: That step.
        near_best_step: First step whose score on dev is at least 99% of `dev_score`, or None if the
            log is missing.
        steps: Steps that were trained.
        trained_params: Number of trained parameters.
        seconds: Seconds of the training steps that were timed, without compilation and
            evaluations, or None if no step was.
        examples_per_second: Training examples in each of these seconds.
        device: The devices in words.
        test_rows: Number of test rows, or None if the manifest is missing.
        majority_score: Score on test of always giving the most frequent answer of train, or None
            in runs of older versions.
        curve: (step, dev score) of each evaluation.
    """

    run: str
    task: str
    seed: int
    values: Mapping[str, Any]
    score: float
    rank_score: float | None
    dev_score: float
    best_step: int
    near_best_step: int | None
    steps: int
    trained_params: int
    seconds: float | None
    examples_per_second: float | None
    device: str | None
    test_rows: int | None
    majority_score: float | None
    curve: Sequence[tuple[int, float]]


class LeftOut(NamedTuple):
    """A run that does not count, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class RunTable:
    """The runs of a study.

    Args:
        folder: Folder of the study.
        fields: Options that vary, by their dotted names. An option whose value follows from the
            task is not one of them. With each stand the options that vary exactly as it does,
            which are not fields themselves.
        rows: The finished runs, ordered by folder.
        left_out: The other runs.
        notes: Sentences about what makes the runs hard to compare.
    """

    folder: Path
    fields: Mapping[str, Sequence[str]]
    rows: Sequence[RunRow]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Run:
    """The files of a finished run, read."""

    name: str
    options: Mapping[str, Any]
    result: Mapping[str, Any]
    manifest: Mapping[str, Any]
    curve: Sequence[tuple[int, float]]
    seconds: float


def collect(folder: Path) -> RunTable:
    """Read all runs in a folder and the folders below it.

    Raises:
        FileNotFoundError: The folder does not exist, or contains no run.
        ValueError: No run is finished, or the folder is an address.
    """
    if (address := find_address(folder)) is not None:
        raise ValueError(
            f"'{address}' is in a bucket, and a report reads folders of this machine; copy it with "
            f"`gcloud storage cp -r {address} .` first"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder; expected one with runs in it")
    reasons = _sweep_reasons(folder)
    runs: list[_Run] = []
    left_out: list[LeftOut] = []
    for place in _find(folder):
        name = place.relative_to(folder).as_posix()
        try:
            runs.append(_read(name, RunFolder(place)))
        except (ValueError, TypeError, OSError) as error:
            left_out.append(LeftOut(name, reasons.get(name) or one_line(error)))
    if not runs and not left_out:
        raise FileNotFoundError(
            f"'{folder}' contains no run; expected folders as `spt-jax train` and `spt-jax sweep` "
            "write them, each with a config.yaml"
        )
    if not runs:
        raise ValueError(
            f"'{folder}' contains no finished run, but {len(left_out)} other(s), such as "
            f"'{left_out[0].run}': {left_out[0].reason}"
        )
    fields = _varied(runs)
    rows, twice = _unique([_row(run, fields) for run in runs])
    return RunTable(folder, fields, rows, [*left_out, *twice], _notes(runs))


def key_of(value: Any) -> str:
    """Return a text that is the same for two values of an option exactly if these are equal."""
    return json.dumps(value, sort_keys=True, default=str)


def _find(folder: Path) -> Iterator[Path]:
    """Yield the folders with a config.yaml, sorted, without looking inside of them."""
    for place, names, files in os.walk(folder):
        names.sort()
        if "config.yaml" in files:
            names.clear()
            yield Path(place)


def _read(name: str, folder: RunFolder) -> _Run:
    """Read a finished run.

    Raises:
        ValueError, TypeError: It is not finished, or not a training run of this version, or a
            file of it is damaged.
        OSError: A file cannot be read.
    """
    saved = folder.read_config()
    if "task" not in saved:
        raise ValueError("it is no training run: its config has no task")
    # Options without effect are left out, because older versions had other values of them.
    kept = {name: value for name, value in saved.items() if name not in WITHOUT_EFFECT}
    config = from_dict(TrainConfig, kept, saved=True)
    log = read_log(folder.log_file) if folder.log_file.is_file() else []
    if not folder.result_file.is_file():
        last = log[-1]["step"] if log else 0
        raise ValueError(f"it is not finished: its log ends at step {last} of {config.steps}")
    result = json.loads(folder.result_file.read_text())
    for needed, kind in NEEDED.items():
        value: Any = result.get(needed) if isinstance(result, dict) else None
        if not isinstance(value, kind) or (kind is not str and not math.isfinite(value)):
            raise ValueError(f"its result has no {needed}")
    timing = read_log(folder.timing_file) if folder.timing_file.is_file() else []
    try:
        curve = [(line["step"], line["score"]) for line in log if line.get("split") == "dev"]
        seconds = sum(lap["seconds"] for lap in timing)
    except KeyError as error:
        raise ValueError(f"a line of its logs has no {error}") from error
    options = flatten(to_dict(config))
    return _Run(name, options, result, folder.read_manifest(), curve, seconds)


def _varied(runs: Sequence[_Run]) -> dict[str, list[str]]:
    """Return the options that differ between runs of one task, each with those that follow it.

    Two options follow each other if every two runs that agree in one of them agree in the other.
    The first in the order of the longest config stands for them all, `eval` last.
    """
    by_length = sorted(runs, key=lambda run: -len(run.options))
    names = dict.fromkeys(name for run in by_length for name in run.options)
    tasks = {run.result["task"] for run in runs}
    free = tuple(f"{name}." for name in WITHOUT_EFFECT)

    def groups(name: str, task: str | None = None) -> tuple[int, ...]:
        """Return, for each run, the number of the first run with the same value."""
        first: dict[str, int] = {}
        return tuple(
            first.setdefault(key_of(run.options.get(name)), number)
            for number, run in enumerate(runs)
            if task is None or run.result["task"] == task
        )

    first: dict[tuple[int, ...], str] = {}
    fields: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name.startswith("eval.")):
        matters = name != "seed" and not f"{name}.".startswith(free)
        if matters and any(len({*groups(name, task)}) > 1 for task in tasks):
            leader = first.setdefault(groups(name), name)
            fields.setdefault(leader, []).extend([name] if name != leader else [])
    return fields


def _row(run: _Run, fields: Iterable[str]) -> RunRow:
    result = run.result
    near = (step for step, score in run.curve if score >= 0.99 * result["dev_score"])
    return RunRow(
        run=run.name,
        task=result["task"],
        seed=run.options["seed"],
        values={name: run.options.get(name) for name in fields},
        score=result["score"],
        rank_score=result.get("rank_score"),
        dev_score=result["dev_score"],
        best_step=result["best_step"],
        near_best_step=next(near, None),
        steps=result.get("steps_done", result["steps"]),
        trained_params=result["trained_params"],
        seconds=run.seconds or None,
        examples_per_second=result.get("examples_per_second"),
        device=run.manifest.get("device"),
        test_rows=run.manifest.get("data", {}).get("rows", {}).get("test"),
        majority_score=result.get("majority_score"),
        curve=run.curve,
    )


def _unique(rows: Sequence[RunRow]) -> tuple[list[RunRow], list[LeftOut]]:
    """Keep the first run of the same task, options and seed, so that no seed counts twice."""
    first: dict[tuple, RunRow] = {}
    twice = []
    for row in rows:
        kept = first.setdefault((row.task, key_of(row.values), row.seed), row)
        if kept is not row:
            twice.append(LeftOut(row.run, f"it has the same options and seed as '{kept.run}'"))
    return list(first.values()), twice


def _notes(runs: Sequence[_Run]) -> list[str]:
    """Say where runs do not compare, or where dev is no other data than test."""
    notes = []
    known = paper_task_names()
    same = {
        str(run.options["task.name"])
        for run in runs
        if run.options.get("task.name") in known
        and not run.options.get("task.source")
        and not run.options.get("task.dev_from_train")
    }
    if same:
        notes.append(
            f"The dev rows of {', '.join(sorted(same))} are the published validation rows, which "
            "are mostly the test rows as well, as in the papers. So what is chosen on dev has been "
            "chosen on test too; task.dev_from_train=true takes dev from train instead."
        )
    for what, fields in (("model", ("model",)), ("data", ("model", "task", "data"))):
        seen: dict[str, _Run] = {}
        for run in runs:
            identity = run.manifest.get("identity", {})
            alike = {
                name: value for name, value in run.options.items() if name.split(".")[0] in fields
            }
            other = seen.setdefault(key_of(alike), run)
            there = other.manifest.get("identity", {})
            if identity.get(f"{what}_fingerprint") != there.get(f"{what}_fingerprint"):
                notes.append(
                    f"'{run.name}' and '{other.name}' have the same options of the {what} but not "
                    f"the same {what} (their fingerprints differ), so more than their options "
                    "differs between them."
                )
                break
    return notes


def _sweep_reasons(folder: Path) -> dict[str, str]:
    """Return why runs of a sweep failed or ended early, by their names."""
    try:
        records = json.loads((folder / RESULTS_FILE).read_text())
        return {r["name"]: f"{r['state']}: {r['reason']}" for r in records if "reason" in r}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # not the folder of a sweep
