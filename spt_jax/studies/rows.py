"""A finished run as a row, and rows as lines of JSON.

Invariant: a row that was written to a file and read again is the same row, so a report of the file
is the report of the run folders.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.errors import one_line

_RESULT = {
    "task": str,
    "score": int | float,
    "dev_score": int | float,
    "best_step": int,
    "steps": int,
    "trained_params": int,
}
"""Values of a result without which a run does not count, and their types."""

_LINE = {**_RESULT, "study": str, "run": str, "seed": int, "options": dict, "curve": list}
"""Values without which a line is no run, and their types."""

_OR_NONE = (
    "rank_score",
    "near_best_step",
    "seconds",
    "examples_per_second",
    "test_rows",
    "majority_score",
    "unprompted_score",
    "unprompted_rank_score",
)
"""Values of a line that are numbers or null."""


@dataclass(frozen=True)
class RunRow:
    """A finished run.

    Args:
        study: The folder of the study, as it was given.
        run: Its folder, relative to the folder of the study.
        task: Name of its task.
        seed: Its seed.
        options: All its options that change what it learns, but the seed, by their dotted names.
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
        unprompted_score: Score on test of the frozen model without a prompt, or None if the run
            did not ask for it.
        unprompted_rank_score: Rank score of the same.
        identity: Fingerprints of its model and data.
        curve: (step, dev score) of each evaluation.
    """

    study: str
    run: str
    task: str
    seed: int
    options: Mapping[str, Any]
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
    unprompted_score: float | None
    unprompted_rank_score: float | None
    identity: Mapping[str, str]
    curve: Sequence[tuple[int, float]]


class LeftOut(NamedTuple):
    """A run that does not count, and why."""

    run: str
    reason: str


def check_result(result: Any) -> None:
    """Raise ValueError if a result lacks a value without which a run does not count."""
    _check(result, _RESULT, "its result")


def write_lines(rows: Sequence[RunRow], left_out: Sequence[LeftOut]) -> str:
    """Return a line of JSON for each run, and then one for each run that is left out.

    A run has the fields of `RunRow`, where each option that varies has its dotted name.
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        record = dataclasses.asdict(row)
        values = record.pop("values")
        records.append({**record, **values})
    records += [{"run": run, "left_out": reason} for run, reason in left_out]
    return "".join(json.dumps(record) + "\n" for record in records)


def read_lines(file: Path) -> tuple[list[RunRow], list[LeftOut]]:
    """Read what `write_lines` returned from a file. The rows have no `values` yet.

    Raises:
        ValueError: A line is no JSON, or neither a run nor one that is left out.
    """
    rows: list[RunRow] = []
    left_out: list[LeftOut] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            if isinstance(record, dict) and "left_out" in record:
                _check(record, {"run": str, "left_out": str}, "it")
                left_out.append(LeftOut(record["run"], record["left_out"]))
            else:
                rows.append(_read_row(record))
        except ValueError as error:
            raise ValueError(
                f"'{file}', line {number} is no run: {one_line(error)}; expected a .jsonl file as "
                "`spt-jax report` of this version writes it, so make the file again from the "
                "folders of the runs"
            ) from error
    return rows, left_out


def _read_row(record: Any) -> RunRow:
    _check(record, _LINE, "it")
    for name in _OR_NONE:
        if record.get(name) is not None:
            _check(record, {name: int | float}, "it")
    identity = record.get("identity", {})
    if not isinstance(identity, dict):
        raise ValueError("it has no identity")
    for point in record["curve"]:
        if not isinstance(point, list) or list(map(_is_number, point)) != [True, True]:
            raise ValueError("its curve is no list of pairs of numbers")
    given = {field.name: record.get(field.name) for field in dataclasses.fields(RunRow)}
    curve = [(step, score) for step, score in record["curve"]]
    return RunRow(**{**given, "values": {}, "identity": identity, "curve": curve})


def _check(record: Any, needed: Mapping[str, Any], what: str) -> None:
    for name, kind in needed.items():
        value: Any = record.get(name) if isinstance(record, dict) else None
        is_number = isinstance(value, int | float)
        if not isinstance(value, kind) or (is_number and not _is_number(value)):
            raise ValueError(f"{what} has no {name}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
