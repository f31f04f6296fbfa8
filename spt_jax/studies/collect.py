"""Read the runs of a study into plain rows: what varies between them, their scores and costs.

The runs are those below a folder, or those in a .jsonl file that a report wrote.

What varies is found by comparing the configs, so the runs may come from `spt-jax sweep` or from any
other command. A run counts once it is finished. Every other run is listed with the reason why it
does not count.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spt_jax.config.fields import flatten, from_dict, to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.errors import one_line
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.runs.workdir import find_address
from spt_jax.studies.grid import RESULTS_FILE, WITHOUT_EFFECT
from spt_jax.studies.rows import LeftOut, RunRow, check_result, read_lines

_FREE = tuple(f"{name}." for name in WITHOUT_EFFECT)


@dataclass(frozen=True)
class RunTable:
    """The runs of a study.

    Args:
        studies: Folders of the studies that the runs are of; a file of runs may join several.
        fields: Options that vary, by their dotted names. An option whose value follows from the
            task is not one of them. With each stand the options that vary exactly as it does,
            which are not fields themselves.
        rows: The finished runs, ordered by folder.
        left_out: The other runs.
        notes: Sentences about what makes the runs hard to compare.
    """

    studies: Sequence[str]
    fields: Mapping[str, Sequence[str]]
    rows: Sequence[RunRow]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]


def collect(place: Path) -> RunTable:
    """Read all runs in a folder and the folders below it, or in a .jsonl file that a report wrote.

    Raises:
        FileNotFoundError: The folder or file does not exist, or contains no run.
        ValueError: No run is finished, a line of the file is damaged or has another format, or
            the folder is an address.
    """
    if (address := find_address(place)) is not None:
        raise ValueError(
            f"'{address}' is in a bucket, and a report reads folders of this machine; copy it with "
            f"`gcloud storage cp -r {address} .` first"
        )
    if place.is_file():
        rows, left_out = read_lines(place)
    elif place.is_dir():
        rows, left_out = _read_folder(place)
    else:
        raise FileNotFoundError(
            f"'{place}' is no folder; expected one with runs in it, or a .jsonl file of a report"
        )
    if not rows and not left_out:
        raise FileNotFoundError(
            f"'{place}' contains no run; expected folders as `spt-jax train` and `spt-jax sweep` "
            "write them, each with a config.yaml"
        )
    if not rows:
        raise ValueError(
            f"'{place}' contains no finished run, but {len(left_out)} other(s), such as "
            f"'{left_out[0].run}': {left_out[0].reason}"
        )
    studies = [*dict.fromkeys(row.study for row in rows)]
    fields = _varied(rows)
    rows = [
        dataclasses.replace(row, values={name: row.options.get(name) for name in fields})
        for row in rows
    ]
    kept, twice = _unique(rows)
    return RunTable(studies, fields, kept, [*left_out, *twice], _notes(rows))


def key_of(value: Any) -> str:
    """Return a text that is the same for two values of an option exactly if these are equal."""
    return json.dumps(value, sort_keys=True, default=str)


def _read_folder(folder: Path) -> tuple[list[RunRow], list[LeftOut]]:
    reasons = _sweep_reasons(folder)
    rows: list[RunRow] = []
    left_out: list[LeftOut] = []
    for place in _find(folder):
        name = place.relative_to(folder).as_posix()
        try:
            rows.append(_read(str(folder), name, RunFolder(place)))
        except (ValueError, TypeError, OSError) as error:
            left_out.append(LeftOut(name, reasons.get(name) or one_line(error)))
    return rows, left_out


def _find(folder: Path) -> Iterator[Path]:
    """Yield the folders with a config.yaml, sorted, without looking inside of them."""
    for place, names, files in os.walk(folder):
        names.sort()
        if "config.yaml" in files:
            names.clear()
            yield Path(place)


def _read(study: str, name: str, folder: RunFolder) -> RunRow:
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
    check_result(result)
    timing = read_log(folder.timing_file) if folder.timing_file.is_file() else []
    try:
        curve = [(line["step"], line["score"]) for line in log if line.get("split") == "dev"]
        seconds = sum(lap["seconds"] for lap in timing)
    except KeyError as error:
        raise ValueError(f"a line of its logs has no {error}") from error
    manifest = folder.read_manifest()
    near = (step for step, score in curve if score >= 0.99 * result["dev_score"])
    return RunRow(
        study=study,
        run=name,
        task=result["task"],
        seed=config.seed,
        options={
            name: value
            for name, value in flatten(to_dict(config)).items()
            if name != "seed" and not f"{name}.".startswith(_FREE)
        },
        values={},  # known when all runs are
        score=result["score"],
        rank_score=result.get("rank_score"),
        dev_score=result["dev_score"],
        best_step=result["best_step"],
        near_best_step=next(near, None),
        steps=result.get("steps_done", result["steps"]),
        trained_params=result["trained_params"],
        seconds=seconds or None,
        examples_per_second=result.get("examples_per_second"),
        device=manifest.get("device"),
        test_rows=manifest.get("data", {}).get("rows", {}).get("test"),
        majority_score=result.get("majority_score"),
        unprompted_score=result.get("unprompted_score"),
        unprompted_rank_score=result.get("unprompted_rank_score"),
        identity=manifest.get("identity", {}),
        curve=curve,
    )


def _varied(runs: Sequence[RunRow]) -> dict[str, list[str]]:
    """Return the options that differ between runs of one task, each with those that follow it.

    Two options follow each other if every two runs that agree in one of them agree in the other.
    The first in the order of the longest config stands for them all, `eval` last.
    """
    by_length = sorted(runs, key=lambda run: -len(run.options))
    names = dict.fromkeys(name for run in by_length for name in run.options)
    tasks = {run.task for run in runs}

    def groups(name: str, task: str | None = None) -> tuple[int, ...]:
        """Return, for each run, the number of the first run with the same value."""
        first: dict[str, int] = {}
        return tuple(
            first.setdefault(key_of(run.options.get(name)), number)
            for number, run in enumerate(runs)
            if task is None or run.task == task
        )

    first: dict[tuple[int, ...], str] = {}
    fields: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name.startswith("eval.")):
        if any(len({*groups(name, task)}) > 1 for task in tasks):
            leader = first.setdefault(groups(name), name)
            fields.setdefault(leader, []).extend([name] if name != leader else [])
    return fields


def _unique(rows: Sequence[RunRow]) -> tuple[list[RunRow], list[LeftOut]]:
    """Keep the first run of the same task, options and seed, so that no seed counts twice."""
    first: dict[tuple, RunRow] = {}
    twice = []
    for row in rows:
        kept = first.setdefault((row.task, key_of(row.values), row.seed), row)
        if kept is not row:
            twice.append(LeftOut(row.run, f"it has the same options and seed as '{kept.run}'"))
    return list(first.values()), twice


def _notes(runs: Sequence[RunRow]) -> list[str]:
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
        seen: dict[str, RunRow] = {}
        for run in runs:
            alike = {
                name: value for name, value in run.options.items() if name.split(".")[0] in fields
            }
            other = seen.setdefault(key_of(alike), run)
            fingerprint = f"{what}_fingerprint"
            if run.identity.get(fingerprint) != other.identity.get(fingerprint):
                notes.append(
                    f"'{run.run}' and '{other.run}' have the same options of the {what} but not "
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
