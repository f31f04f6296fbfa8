"""Train the runs: keep finished ones, continue interrupted ones, report failed ones.

A run is an ordinary run folder of `spt_jax.train.fit` with one more file, `measured.json`, for the
machine, the date and the duration.

Invariant: a run counts only if its config, its backbone and its rows are the requested ones.
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax

from spt_jax.config.fields import to_dict
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log, write_json_atomic
from spt_jax.runs.progress import say
from spt_jax.train import fit
from study.grid import Run, expected_minutes

BAR_WIDTH = 24


class Origin(NamedTuple):
    """The backbone and the rows that runs have to have.

    Args:
        fingerprint: Fingerprint of the backbone.
        rows: Rows per split by task, of the tasks that were read.
    """

    fingerprint: str
    rows: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Record:
    """A finished run, read from its folder.

    Args:
        run: The run.
        result: Its result.json.
        manifest: Its manifest.json.
        measured: Its measured.json, or empty if another script trained the run.
        curve: (step, dev score) in order.
    """

    run: Run
    result: dict
    manifest: dict
    measured: dict
    curve: tuple[tuple[int, float], ...]


def state_of(run: Run, origin: Origin) -> str:
    """Return `finished`, `started`, `new`, or how the run in the folder differs from this one."""
    folder, config = RunFolder(run.folder), to_dict(run.config)
    if not folder.config_file.exists():
        return "new"
    try:
        folder.check_config(config)
    except ValueError as error:
        return str(error)
    steps = folder.read_config()["steps"]
    if steps != config["steps"]:  # a schedule that ended cannot be stretched afterwards
        return _other(run, "number of steps", steps, config["steps"])
    if folder.manifest_file.exists():
        manifest = json.loads(folder.manifest_file.read_text())
        old = manifest["identity"]["model_fingerprint"]
        if old != origin.fingerprint:
            return _other(run, "backbone", old[:12], origin.fingerprint[:12])
        rows = origin.rows.get(run.task)
        if rows is not None and manifest["data"]["rows"] != dict(rows):
            return _other(run, "number of rows", manifest["data"]["rows"], dict(rows))
    return "started" if folder.read_result(config) is None else "finished"


def collect(runs: Sequence[Run], origin: Origin) -> list[Record]:
    """Return the finished runs."""
    records = []
    for run in runs:
        if state_of(run, origin) != "finished":
            continue
        folder = RunFolder(run.folder)
        log = read_log(folder.log_file)
        records.append(
            Record(
                run,
                json.loads(folder.result_file.read_text()),
                json.loads(folder.manifest_file.read_text()),
                _measured(run),
                tuple((r["step"], r["score"]) for r in log if r.get("split") == "dev"),
            )
        )
    return records


def train_all(
    runs: Sequence[Run],
    states: Mapping[Path, str],
    command: Sequence[str],
    *,
    overwrite: bool = False,
) -> list[str]:
    """Train the runs that are not finished.

    Args:
        runs: All runs.
        states: Results of `state_of` by folder.
        command: The command line, for the manifests.
        overwrite: Whether to delete runs of another config, backbone or dataset and train them
            again.

    Returns:
        A line for each failed run.
    """
    failed: list[str] = []

    def fail(run: Run, what: str) -> None:
        failed.append(f"{run}: {' '.join(what.split())}")
        say(f"failed: {failed[-1]}")

    waiting = [run for run in runs if states[run.folder] != "finished"]
    if not overwrite:  # said before the hours that the others take
        for run in waiting:
            if states[run.folder] not in ("new", "started"):
                fail(run, states[run.folder])
        waiting = [run for run in waiting if states[run.folder] in ("new", "started")]
    done = len(runs) - len(waiting)
    for number, run in enumerate(waiting):
        say(f"{_bar(done + number, len(runs))}, {minutes(waiting[number:], runs)} left: {run}")
        try:
            _train(run, states[run.folder], command)
        except Exception as error:  # whatever it is, the other runs are worth having
            fail(run, f"{type(error).__name__}: {error}")
        finally:
            jax.clear_caches()  # the programs of a hundred runs would fill the memory
    say(f"{_bar(len(runs), len(runs))}, {len(failed)} failed")
    return failed


def minutes(waiting: Sequence[Run], runs: Sequence[Run]) -> str:
    """Estimate the minutes of the waiting runs by the speed of the timed ones."""
    total = round(speed_scale(runs) * sum(expected_minutes(run.config) for run in waiting))
    return f"{total // 60} h {total % 60:02d} min"


def speed_scale(runs: Sequence[Run]) -> float:
    """Return the minutes taken per expected minute over all timed runs, or 1 without any."""
    timed = [(run, _measured(run).get("seconds")) for run in runs]
    taken = sum(seconds / 60 for _, seconds in timed if seconds)
    expected = sum(expected_minutes(run.config) for run, seconds in timed if seconds)
    return taken / expected if expected else 1.0


def machine() -> str:
    """Describe the accelerators, or the CPU and the cores that this process may use."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = named[0].partition(":")[2].strip() if named else name
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def _train(run: Run, state: str, command: Sequence[str]) -> None:
    overwrite = state not in ("new", "started")
    started = time.monotonic()
    fit(run.config, run.folder, overwrite=overwrite, command=command)
    # How long a run that was stopped in between has taken is not known.
    seconds = None if state == "started" else time.monotonic() - started
    measured = {"machine": machine(), "date": datetime.date.today().isoformat()}
    write_json_atomic(run.folder / "measured.json", {**measured, "seconds": seconds})


def _measured(run: Run) -> dict:
    file = run.folder / "measured.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _other(run: Run, what: str, there: object, now: object) -> str:
    return (
        f"'{run.folder}' holds a run with another {what} ({there} there, {now} now); "
        "give another --workdir, or --overwrite to delete that run"
    )


def _bar(done: int, total: int) -> str:
    full = BAR_WIDTH * done // max(1, total)
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] {done}/{total} runs"
