"""Format the numbers of a study as Markdown tables.

Invariant: a table shows what is missing. A dash stands where there is no number, and a star where
an interval is of few seeds.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from spt_jax.studies.cells import (
    Cell,
    Difference,
    Metric,
    choose_by_dev,
    tasks_of,
    value_text,
    values_of,
    values_text,
)
from spt_jax.studies.statistics import CONFIDENCE, FEW, LEVEL, Summary

DASH = "–"
INTERVAL = f"{CONFIDENCE:.0%} interval"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table, the first column left-aligned and the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(_cell, cells))} |\n" for cells in lines)


def score_table(cells: Sequence[Cell], metric: Metric) -> str:
    """Format the statistics of every cell."""
    fields = _fields(cells)
    header = ("task", *fields, "n", metric, "deviation", INTERVAL)
    if metric != "dev_score":
        header = (*header, "dev_score")
    rows = []
    for cell in cells:
        row = [cell.task, *_values(cell), *_statistics(cell.summary(metric))]
        rows.append(row if metric == "dev_score" else [*row, f"{cell.dev_mean:.1f}"])
    return table(header, rows)


def best_table(cells: Sequence[Cell], metric: Metric) -> str:
    """Format the cell of each task that is best on dev."""
    header = ("task", *_fields(cells), "dev_score", "n", metric, "deviation", INTERVAL)
    return table(
        header,
        [
            [best.task, *_values(best), f"{best.dev_mean:.1f}", *_statistics(best.summary(metric))]
            for task in tasks_of(cells)
            if (best := choose_by_dev(cells, task, {})) is not None
        ],
    )


def best_by_field_table(cells: Sequence[Cell], field: str, metric: Metric) -> str:
    """Format, for each value of an option, the cell that is best on dev among those with it."""
    others = [name for name in _fields(cells) if name != field]
    header = ("task", field, *others, "dev_score", "n", metric, "deviation", INTERVAL)
    rows = []
    for task in tasks_of(cells):
        for value in values_of(cells, field):
            if (best := choose_by_dev(cells, task, {field: value})) is not None:
                chosen = [value_text(best.values[name]) for name in others]
                statistics = _statistics(best.summary(metric))
                rows.append([task, value_text(value), *chosen, f"{best.dev_mean:.1f}", *statistics])
    return table(header, rows)


def difference_table(differences: Sequence[Difference], margin: float | None) -> str:
    """Format paired differences, with the test of equivalence if there is a margin."""
    chosen = any(values for difference in differences for values in difference.chosen)
    header = ["compared", "task", "n", "difference", "deviation", INTERVAL]
    header += ["p", f"within {margin:g}"] if margin is not None else []
    header += ["chosen by dev", "of the baseline"] if chosen else []
    rows = []
    for found in differences:
        row = [values_text(found.values), found.task or "mean of all tasks"]
        row += _statistics(found.summary, signed=True) if found.summary else ["0", *[DASH] * 3]
        if margin is not None:
            row += [DASH, DASH] if found.p is None else [_p(found.p), verdict(found.p)]
        if chosen:
            row += [values_text(values) or DASH for values in found.chosen]
        rows.append(row)
    return table(header, rows)


def verdict(p: float) -> str:
    """Return what a p-value of the test of equivalence says."""
    return "yes" if p < LEVEL else "not shown"


def cost_table(cells: Sequence[Cell]) -> str:
    """Format what the runs of every cell took, as means over the seeds."""
    columns = {
        "trained": "trained_params",
        "steps": "steps",
        "best step": "best_step",
        "99% at": "near_best_step",
        "seconds": "seconds",
        "examples/s": "examples_per_second",
    }
    rows = []
    for cell in cells:
        devices = sorted({row.device for row in cell.rows if row.device is not None})
        numbers = [_mean(cell, name) for name in columns.values()]
        rows.append([cell.task, *_values(cell), *numbers, "; ".join(devices) or DASH])
    return table(("task", *_fields(cells), *columns, "device"), rows)


def _fields(cells: Sequence[Cell]) -> list[str]:
    return list(cells[0].values)


def _values(cell: Cell) -> list[str]:
    return [value_text(value) for value in cell.values.values()]


def _statistics(summary: Summary, *, signed: bool = False) -> list[str]:
    """Format n, mean, deviation and interval."""
    form = "+.2f" if signed else ".1f"
    if summary.low is None:
        return [str(summary.n), f"{summary.mean:{form}}", DASH, DASH]
    few = "\\*" if summary.n < FEW else ""
    return [
        str(summary.n),
        f"{summary.mean:{form}}",
        f"{summary.deviation:.2f}",
        f"{summary.low:{form}} to {summary.high:{form}}{few}",
    ]


def _mean(cell: Cell, name: str) -> str:
    values = [value for row in cell.rows if (value := getattr(row, name)) is not None]
    return f"{np.mean(values):,.0f}" if values else DASH


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
