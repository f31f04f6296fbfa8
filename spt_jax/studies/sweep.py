"""Train the runs of a study in one folder: those that are missing, until all have ended.

    sweep.yaml     the study, as a study file
    results.json   what became of each run
    NAME/          the folder of each run, as `spt-jax train` writes it

Runs that can share a program are trained together, in packs (`packs.py`). Every run is what it
would be by itself, so the folder of a run is the only record of its progress: a sweep that is
started again skips the finished runs and goes on with the others.

A run that fails, because its loss is not finite for example, does not end the sweep. Each run
scores its test rows once, at its end; what is chosen between runs is chosen by dev.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spt_jax.config.fields import flatten, show
from spt_jax.distributed.main_process import main_only, main_process
from spt_jax.errors import BAD_INPUT, RunError, one_line
from spt_jax.paths import safe_join
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import lock_folder, write_atomic, write_json_atomic
from spt_jax.runs.progress import ManyBar, say
from spt_jax.runs.workdir import find_address
from spt_jax.studies.grid import (
    PARTS,
    RESULTS_FILE,
    WITHOUT_EFFECT,
    Study,
    StudyRun,
    expand,
    to_tree,
)
from spt_jax.studies.halving import SHARES, dev_score, rung_step, worse_half
from spt_jax.studies.packs import describe_packs, make_packs, train_pack

STUDY_FILE = "sweep.yaml"

SHOWN = ("task", "dev_score", "score", "rank_score", "best_step", "steps_done")
"""Values of a run's result that the results of a sweep repeat."""


def sweep(
    study: Study,
    folder: Path,
    *,
    together: int | None = None,
    halve: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Train all runs of a study that are not finished.

    Args:
        study: A base config and what varies.
        folder: Folder of the sweep. A sweep that was stopped there goes on. It may get more values
            and seeds, but its base stays the same.
        together: Most runs that share a program; None chooses it by memory.
        halve: End the worse half of each task's points at each rung; see `halving.py`.
        overwrite: Delete the runs of the sweep that is there first.
        command: The command line, for the manifests of the runs.

    Returns:
        `runs`, a record of each run with its `name`, its `state` (`finished`, `failed` or
        `halved`), and its scores or the `reason`; `best`, the name of the run with the highest dev
        score, by task; `failed`, the number of failed runs.

    Raises:
        ValueError: The study is wrong, the folder belongs to another one, or a run cannot begin.
        FileNotFoundError: A file of a run does not exist.
        RunError: Another process works in the folder, or it cannot be written.
        Preempted: A signal ended the sweep; the runs that were trained are saved.
    """
    runs = expand(study)
    packs = [[runs[n] for n in pack] for pack in make_packs([r.config for r in runs], together)]
    with _claim(study, folder, overwrite):
        results = {run.name: _read(run, folder) for run in runs}
        _write_results(folder, results)
        before = sum(record["state"] == "finished" for record in results.values())
        say(f"{describe_packs(packs)}; {before} of the runs finished before")
        total = _steps(runs)
        with ManyBar("sweep", total, _steps_over(runs, results)) as bar:
            for rung in (*range(len(SHARES)), None) if halve else (None,):
                for pack in packs:
                    left = [run for run in pack if _has_steps_left(run, results, folder, rung)]
                    if left:
                        bar.begin_part(_steps_over(runs, results), _steps(left), total)
                        for run, record in _train(left, folder, command, rung):
                            results[run.name] = record
                        _write_results(folder, results)
                if rung is not None:
                    results |= _halve(runs, results, folder, rung)
                    _write_results(folder, results)
    return summarize(results)


def _has_steps_left(
    run: StudyRun, results: Mapping[str, Mapping[str, Any]], folder: Path, rung: int | None
) -> bool:
    """Return whether a run has to be trained, up to a rung or to its end."""
    if results[run.name]["state"] != "waiting":
        return False
    return rung is None or dev_score(run, folder, rung_step(run.config, rung)) is None


def _halve(
    runs: Sequence[StudyRun], results: Mapping[str, Mapping[str, Any]], folder: Path, rung: int
) -> dict[str, dict[str, Any]]:
    """Return the records of the runs that end at a rung."""
    left = [run for run in runs if results[run.name]["state"] in ("waiting", "finished")]
    scores = {run.name: dev_score(run, folder, rung_step(run.config, rung)) for run in left}
    known = {name: score for name, score in scores.items() if score is not None}
    ended = [run for run in worse_half(left, known) if results[run.name]["state"] == "waiting"]
    for run in ended:
        say(f"run {run.name} ends at step {rung_step(run.config, rung)}, in the worse half by dev")
    return {
        run.name: {
            "name": run.name,
            "state": "halved",
            "reason": f"in the worse half by dev at step {rung_step(run.config, rung)}",
        }
        for run in ended
    }


def summarize(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the records of all runs, the best run of each task by dev, and the number of failures.

    Args:
        results: Record of each run by its name.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for record in results.values():
        if record["state"] == "finished":
            other = best.setdefault(record["task"], record)
            if record["dev_score"] > other["dev_score"]:
                best[record["task"]] = record
    return {
        "runs": list(results.values()),
        "best": {task: record["name"] for task, record in best.items()},
        "failed": sum(record["state"] == "failed" for record in results.values()),
    }


def _train(
    pack: Sequence[StudyRun], folder: Path, command: Sequence[str], rung: int | None
) -> list[tuple[StudyRun, dict[str, Any]]]:
    """Train runs in one program, up to a rung or to their ends, and return the record of each."""
    names, configs = [run.name for run in pack], [run.config for run in pack]
    say(f"training {', '.join(names)}")
    stops = None if rung is None else [rung_step(config, rung) for config in configs]
    try:
        places = [folder / name for name in names]
        outcomes = train_pack(configs, places, command=command, stops=stops)
    except BAD_INPUT as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        where = f"run '{names[0]}'" if len(pack) == 1 else f"a run of {', '.join(names)}"
        raise kind(f"{where}: {one_line(error)}") from error
    return [(run, _record(run, outcome)) for run, outcome in zip(pack, outcomes, strict=True)]


def _record(run: StudyRun, outcome: Mapping[str, Any] | RunError | None) -> dict[str, Any]:
    """Return the record of a run that has ended, or that is left for now."""
    if outcome is None:
        return {"name": run.name, "state": "waiting"}
    if isinstance(outcome, RunError):
        say(f"run {run.name} failed: {one_line(outcome)}")
        return {"name": run.name, "state": "failed", "reason": one_line(outcome)}
    shown = {name: outcome[name] for name in SHOWN if name in outcome}
    return {"name": run.name, "state": "finished", **shown}


def _steps(runs: Iterable[StudyRun]) -> int:
    return sum(run.config.steps for run in runs)


def _steps_over(runs: Sequence[StudyRun], results: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the steps of the runs that have ended."""
    return _steps(run for run in runs if results[run.name]["state"] != "waiting")


def _read(run: StudyRun, folder: Path) -> dict[str, Any]:
    """Return the record of a run before the sweep."""
    result = RunFolder(folder / run.name).finished(run.config, overwrite=False)
    return _record(run, result)


@contextlib.contextmanager
def _claim(study: Study, folder: Path, overwrite: bool) -> Iterator[None]:
    """Lock the folder of a sweep, and write its study file."""
    if (address := find_address(folder)) is not None:
        raise ValueError(
            f"workdir '{address}' is in a bucket, and the folder of a sweep has to be on this "
            "machine; give a local --workdir"
        )
    with main_only(lambda: lock_folder(folder)):
        _start(study, folder, overwrite)
        yield


@main_process
def _start(study: Study, folder: Path, overwrite: bool) -> None:
    file = folder / STUDY_FILE
    if overwrite:
        _delete_runs(folder)
    elif file.is_file():
        _check_base(folder, yaml.safe_load(file.read_text()), to_tree(study))
    write_atomic(file, yaml.safe_dump(to_tree(study), sort_keys=False).encode())


def _check_base(folder: Path, saved: Any, now: Mapping[str, Any]) -> None:
    """Raise ValueError if the sweep in the folder has another base config than that of now."""
    old, new = _base_options(saved), _base_options(yaml.safe_load(yaml.safe_dump(dict(now))))
    changed = [
        f"{name} ({show(old.get(name))} there, {show(new.get(name))} now)"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(WITHOUT_EFFECT)
    ]
    if changed:
        raise ValueError(
            f"workdir '{folder}' holds a sweep with another base config: {', '.join(changed)}; "
            "give another --workdir, or --overwrite to delete the runs of that sweep"
        )


def _base_options(tree: Any) -> dict[str, Any]:
    """Return the options of the base in a study file, by their dotted names."""
    return flatten({name: part for name, part in tree.items() if name not in PARTS})


def _delete_runs(folder: Path) -> None:
    """Delete the runs that the results of a sweep name, and nothing else."""
    file = folder / RESULTS_FILE
    names = [record["name"] for record in json.loads(file.read_text())] if file.is_file() else []
    for name in names:
        run = RunFolder(safe_join(folder, name))
        if run.path.is_dir():
            run.clear()
    file.unlink(missing_ok=True)


@main_process
def _write_results(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    write_json_atomic(folder / RESULTS_FILE, list(results.values()))
