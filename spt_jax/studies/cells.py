"""Group the runs of a study into cells, choose cells by dev, and take differences between them.

A cell is a task and a value of each option that varies. The seeds of its runs are its sample.

Invariant: what is chosen is chosen by the score on dev. The score on test is only shown.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from spt_jax.errors import suggest
from spt_jax.studies.collect import RunRow, RunTable, key_of
from spt_jax.studies.statistics import Summary, equivalence_p_value, summarize

Metric = Literal["score", "rank_score", "dev_score"]
Values = Mapping[str, Any]
"""Values of options by their dotted names."""


@dataclass(frozen=True)
class Cell:
    """The runs of one task with the same options.

    Args:
        task: The task.
        values: Value of each option that varies.
        rows: The runs, ordered by seed.
    """

    task: str
    values: Values
    rows: Sequence[RunRow]

    def summary(self, metric: Metric) -> Summary:
        """Return the statistics of a metric over the seeds."""
        return summarize([getattr(row, metric) for row in self.rows])

    @functools.cached_property
    def dev_mean(self) -> float:
        """The mean score on dev over the seeds."""
        return float(np.mean([row.dev_score for row in self.rows]))

    def has(self, values: Values) -> bool:
        """Return whether the cell has these values."""
        return all(self.values[name] == value for name, value in values.items())


class Difference(NamedTuple):
    """The paired difference of some values to the baseline.

    Args:
        values: The values that are compared with the baseline.
        task: The task, or None for the mean over all tasks.
        chosen: Values of the other options, chosen by dev, of the compared cell and of the
            baseline. Empty for the mean over tasks.
        summary: Statistics of the difference (compared minus baseline), one for each common seed;
            None without a common seed.
        p: p-value of the test of equivalence, or None if it was not made.
    """

    values: Values
    task: str | None
    chosen: tuple[Values, Values]
    summary: Summary | None
    p: float | None


def make_cells(table: RunTable) -> list[Cell]:
    """Return the cells, ordered by task and values."""
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for row in table.rows:
        groups.setdefault((row.task, key_of(row.values)), []).append(row)
    cells = [
        Cell(rows[0].task, rows[0].values, sorted(rows, key=lambda row: row.seed))
        for rows in groups.values()
    ]
    return sorted(cells, key=lambda cell: (cell.task, *map(sort_key, cell.values.values())))


def require_metric(table: RunTable, metric: Metric) -> None:
    """Raise ValueError if a run lacks the metric."""
    lacking = [row.run for row in table.rows if getattr(row, metric) is None]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(table.rows)} runs have no {metric}, such as '{lacking[0]}', "
            "because answers in free text are not ranked; give --metric=score"
        )


def tasks_of(cells: Sequence[Cell]) -> list[str]:
    """Return the tasks in order."""
    return list(dict.fromkeys(cell.task for cell in cells))


def values_of(cells: Sequence[Cell], field: str) -> list[Any]:
    """Return the values of an option in order, each once."""
    found = {key_of(cell.values[field]): cell.values[field] for cell in cells}
    return sorted(found.values(), key=sort_key)


def choose_by_dev(cells: Sequence[Cell], task: str, values: Values) -> Cell | None:
    """Return the cell with the highest mean score on dev.

    Args:
        cells: All cells.
        task: Task of the cell.
        values: Values that it has.

    Returns:
        The cell, the first of equal ones, or None if no cell has these values.
    """
    found = [cell for cell in cells if cell.task == task and cell.has(values)]
    return max(found, key=lambda cell: cell.dev_mean, default=None)


def compare(
    cells: Sequence[Cell], baseline: Values, metric: Metric, margin: float | None = None
) -> list[Difference]:
    """Compare every other combination of the baseline's options with the baseline.

    Where other options vary too, each side takes the values of them that are best on dev. A pair is
    two runs of one task and one seed. With several tasks, the mean over all tasks is compared too,
    for the seeds that every task has.

    Args:
        cells: All cells.
        baseline: Values of one or more options.
        metric: What is compared.
        margin: Margin of the test of equivalence, in points; None makes no test.

    Raises:
        ValueError: No cell has the values of the baseline, or no pair has a common seed.
    """
    if not any(cell.has(baseline) for cell in cells):
        raise ValueError(f"no finished run has {values_text(baseline)}, so nothing can be compared")
    others = {}
    for cell in cells:
        values = {name: cell.values[name] for name in baseline}
        if not cell.has(baseline):
            others[key_of(values)] = values
    ordered = sorted(others.values(), key=lambda values: [*map(sort_key, values.values())])
    differences = [
        difference
        for values in ordered
        for difference in _differences(cells, values, baseline, metric, margin)
    ]
    if all(difference.summary is None for difference in differences):
        raise ValueError(
            f"no run has a seed in common with a run of {values_text(baseline)}, and a difference "
            "is taken between runs of one seed; train both with the same seeds"
        )
    return differences


def _differences(
    cells: Sequence[Cell], values: Values, baseline: Values, metric: Metric, margin: float | None
) -> list[Difference]:
    """Compare some values with the baseline: in each task that has both, and on average."""

    def make(task: str | None, chosen: tuple[Values, Values], found: Sequence[float]) -> Difference:
        if not found:
            return Difference(values, task, chosen, None, None)
        p = None
        if margin is not None and len(found) > 1:
            p = float(equivalence_p_value(np.array(found), margin))
        return Difference(values, task, chosen, summarize(found), p)

    differences = []
    by_seed: list[dict[int, float]] = []
    for task in tasks_of(cells):
        ours, theirs = (choose_by_dev(cells, task, side) for side in (values, baseline))
        if ours is None or theirs is None:
            continue
        scores = [{row.seed: getattr(row, metric) for row in cell.rows} for cell in (ours, theirs)]
        common = sorted(scores[0].keys() & scores[1].keys())
        by_seed.append({seed: scores[0][seed] - scores[1][seed] for seed in common})
        rest = [
            {name: value for name, value in cell.values.items() if name not in baseline}
            for cell in (ours, theirs)
        ]
        differences.append(make(task, (rest[0], rest[1]), list(by_seed[-1].values())))
    if len(by_seed) > 1:
        everywhere = sorted(set.intersection(*(set(found) for found in by_seed)))
        means = [float(np.mean([found[seed] for found in by_seed])) for seed in everywhere]
        differences.append(make(None, ({}, {}), means))
    return differences


def read_values(
    text: str, cells: Sequence[Cell], fields: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the values that a text such as `prompt.length=100,optimizer.name=adamw` names.

    Args:
        text: The text.
        cells: All cells.
        fields: The options that vary, each with those that follow it; see `RunTable`.

    Raises:
        ValueError: The text has another form, or names an option or a value that the runs lack.
    """
    leaders = {name: field for field, names in fields.items() for name in names}
    values: dict[str, Any] = {}
    for part in re.split(r",(?=[\w.]+=)", text):
        name, equals, given = part.partition("=")
        if not equals:
            raise ValueError(f"--compare is '{text}', expected OPTION=VALUE or several with commas")
        if name in leaders:
            raise ValueError(
                f"--compare names '{name}', which varies only together with '{leaders[name]}'; "
                "name that one"
            )
        if name not in fields:
            known = (
                f"what does: {', '.join(fields)}" if fields else "nothing but seed and task does"
            )
            raise ValueError(
                f"--compare names '{name}', which does not vary within a task; {known}"
                f"{suggest(name, fields)}"
            )
        known = values_of(cells, name)
        same = [value for value in known if _means(given, value)]
        if not same:
            raise ValueError(
                f"--compare gives {name} as '{given}', but the runs have "
                f"{', '.join(map(value_text, known))}"
            )
        values[name] = same[0]
    return values


def value_text(value: Any) -> str:
    """Return the value of an option as a report shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else key_of(value)


def values_text(values: Values) -> str:
    """Return values as `--compare` takes them."""
    return ",".join(f"{name}={value_text(value)}" for name, value in values.items())


def is_number(value: Any) -> bool:
    """Return whether a value can be placed on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Return the key that orders numbers by size, other values by their text, and null first."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if is_number(value) else (2, 0.0, value_text(value))


def _means(text: str, value: Any) -> bool:
    if text == value_text(value):
        return True
    try:
        return is_number(value) and float(text) == value
    except ValueError:
        return False
