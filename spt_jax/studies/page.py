"""Write the report of a study: a Markdown page, its figures, and the runs as CSV and JSONL.

Invariant: every number of the page is explained on the page, and was read from run folders. The
same runs give the same bytes, also when they are read from the JSONL of an earlier report.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spt_jax.runs.log import write_atomic
from spt_jax.studies.cells import (
    Cell,
    Difference,
    Metric,
    choose_by_dev,
    compare,
    make_cells,
    read_values,
    require_metric,
    tasks_of,
    value_text,
    values_of,
)
from spt_jax.studies.collect import RunTable, collect
from spt_jax.studies.figures import Figure, can_draw, draw_figures
from spt_jax.studies.rows import write_lines
from spt_jax.studies.statistics import CONFIDENCE, COVERAGE, FEW, LEVEL
from spt_jax.studies.tables import (
    INTERVAL,
    best_by_field_table,
    best_table,
    cost_table,
    difference_table,
    score_table,
    verdict,
)

METRICS: Mapping[Metric, str] = {
    "score": "the score on test of what the model writes",
    "rank_score": "the score on test of the likeliest label word",
    "dev_score": "the score on dev of what the model writes",
}
"""What each metric is."""

NO_FIGURES = "matplotlib is not installed, so there are no figures; pip install 'spt_jax[results]'"


def report(
    place: Path,
    output: Path | None = None,
    *,
    metric: Metric = "score",
    baseline: str | None = None,
    margin: float | None = None,
) -> dict[str, Any]:
    """Write the report of the runs below a folder, or of those that another report wrote.

    Args:
        place: The folder, or the .jsonl file of a report.
        output: The Markdown file; by default `report.md` in the folder, or the file's name with
            the ending .md. Beside it are written the runs, with the endings .csv and .jsonl, and
            the figures.
        metric: Metric of the tables and figures.
        baseline: Values such as `prompt.length=100` that all others are compared with.
        margin: Points within which the others are tested to be as good as the baseline.

    Returns:
        `output`, `runs` (their number), `left_out`, `cells`, `best` by task, `differences`, and the
        `figures`, each ready for JSON.

    Raises:
        FileNotFoundError: The folder or file does not exist or contains no run.
        ValueError: No run is finished, a line of the file is damaged, the runs lack the metric,
            the margin has no baseline or is not positive, or nothing can be compared with the
            baseline.
        RunError: A file cannot be written.
    """
    if margin is not None and baseline is None:
        raise ValueError("--margin is given without --compare, which names what is compared")
    if margin is not None and not 0 < margin <= 100:
        raise ValueError(f"--margin is {margin:g}, expected points, more than 0 and at most 100")
    table = collect(place)
    require_metric(table, metric)
    cells = make_cells(table)
    values = None if baseline is None else read_values(baseline, cells, table.fields)
    differences = [] if values is None else compare(cells, values, metric, margin)
    if output is None:
        output = place.with_suffix(".md") if place.is_file() else place / "report.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    start = output.with_suffix("")
    _write_rows(table, start)
    figures = draw_figures(cells, metric, start) if can_draw() else []
    parts = [
        *_opening(table, cells),
        *_scores(cells, metric),
        *_best(cells, metric),
        *([] if baseline is None else _comparison(differences, baseline, metric, margin)),
        *_figures(figures),
        *_cost(table, cells),
        *_left_out(table),
        f"## Files\n\nThe runs are in `{start.name}.csv` and `{start.name}.jsonl`, one a line; the "
        "second has their dev scores by step too.\n",
    ]
    write_atomic(output, "\n".join(parts).encode())
    return {
        "output": str(output),
        "runs": len(table.rows),
        "left_out": [left_out._asdict() for left_out in table.left_out],
        "metric": metric,
        "cells": [_cell_result(cell, metric) for cell in cells],
        "best": {
            task: dict(best.values)
            for task in tasks_of(cells)
            if (best := choose_by_dev(cells, task, {})) is not None
        },
        "differences": [_difference_result(found) for found in differences],
        "figures": [str(figure.file) for figure in figures],
    }


def _opening(table: RunTable, cells: Sequence[Cell]) -> list[str]:
    seeds = sorted({row.seed for row in table.rows})
    lines = [
        f"# Report of {', '.join(f'`{study}`' for study in table.studies)}\n",
        f"- Finished runs: {len(table.rows)}, with the seeds {', '.join(map(str, seeds))}."
        + (f" Left out: {len(table.left_out)} (see the end)." if table.left_out else ""),
    ]
    for task in tasks_of(cells):
        rows = [row for cell in cells if cell.task == task for row in cell.rows]
        counts = sorted({n for row in rows if (n := row.test_rows) is not None})
        majority = [score for row in rows if (score := row.majority_score) is not None]
        lines.append(
            f"- Task: {task}"
            + (f", {' or '.join(f'{n:,}' for n in counts)} test rows" if counts else "")
            + (f"; the most frequent answer alone scores {majority[0]:.1f}" if majority else "")
            + "."
        )
    for field, followers in table.fields.items():
        texts = map(value_text, values_of(cells, field))
        also = ", ".join(f"`{name}`" for name in followers)
        lines.append(
            f"- `{field}` varies: {', '.join(texts)}."
            + (f" With it varies {also}." if also else "")
        )
    if not table.fields:
        lines.append("- No option varies but the seed.")
    lines += [f"- **Careful.** {note}" for note in table.notes]
    ns = [len(cell.rows) for cell in cells]
    if min(ns) < max(ns):
        lines.append(f"- **Careful.** The cells have between {min(ns)} and {max(ns)} seeds.")
    if min(ns) < FEW:
        few = ", ".join(f"{100 * COVERAGE[n]:.0f}% with {n}" for n in COVERAGE if n < FEW)
        lines.append(
            f"- **Few seeds.** {sum(n < FEW for n in ns)} of {len(ns)} cells have fewer than {FEW} "
            f"seeds. Their intervals contain the mean less often than they should: {few} seeds, "
            f"where {CONFIDENCE:.0%} is meant. They have a star in the tables."
        )
    return [lines[0], "\n".join(lines[1:]) + "\n"]


def _scores(cells: Sequence[Cell], metric: Metric) -> list[str]:
    dev = "" if metric == "dev_score" else " *dev_score*: the mean score on dev at those steps."
    return [
        "## Scores\n",
        score_table(cells, metric),
        f"A row is a cell: the runs that differ in nothing but their seed. *n*: number of seeds. "
        f"*{metric}*: the mean over the seeds of {METRICS[metric]}, 0 to 100, at the step of each "
        "run that is best on dev. *deviation*: the sample deviation of the seeds. "
        f"*{INTERVAL}*: where the mean over all possible seeds lies, by a bootstrap over seeds; "
        "it leaves out that other rows would give another score."
        f"{dev} A dash: there is no such number.\n",
    ]


def _best(cells: Sequence[Cell], metric: Metric) -> list[str]:
    if not cells[0].values:
        return []
    parts = [
        "## Chosen by dev\n",
        best_table(cells, metric),
        "The cell of each task with the highest mean score on dev. The choice does not look at "
        "test scores. Dev scores are too high by a little, because they chose the step and the "
        "cell.\n",
    ]
    if len(cells[0].values) > 1:
        for field in cells[0].values:
            parts += [f"### By `{field}`\n", best_by_field_table(cells, field, metric)]
        parts.append("Each row has the values of the other options that are best on dev.\n")
    return parts


def _comparison(
    differences: Sequence[Difference], baseline: str, metric: Metric, margin: float | None
) -> list[str]:
    parts = [
        f"## Differences to {baseline}\n",
        difference_table(differences, margin),
        f"*difference*: the mean {metric} of the compared runs minus that of {baseline}, in "
        "points, over pairs of runs with the same task and seed. *n*: number of pairs. In the row "
        "of all tasks a seed counts once, with its mean over the tasks. Where the interval does "
        "not contain 0, other seeds would probably give a difference of the same sign.\n",
    ]
    if any(values for found in differences for values in found.chosen):
        parts.append(
            "Other options that vary have, on each side, the values that are best on dev.\n"
        )
    if margin is not None:
        parts.append(
            f"*within {margin:g}*: whether the two are shown to be equally good, up to {margin:g} "
            "points, by two one-sided paired t-tests. *p*: the probability of so clear a result if "
            f"they differed by {margin:g} points; below {LEVEL:g} it is a yes. *not shown* means "
            "that there are too few seeds, or that they do differ. Each row is a test by itself: "
            "of many rows, some may say yes by chance.\n"
        )
    return parts


def _figures(figures: Sequence[Figure]) -> list[str]:
    if not can_draw():
        return ["## Figures\n", f"None: {NO_FIGURES}.\n"]
    if not figures:
        return []
    parts = [
        "## Figures\n",
        f"Lines are means over the seeds, with the {INTERVAL} of the mean around them.\n",
    ]
    for figure in figures:
        parts += [f"![{figure.title}]({figure.file.name})\n", f"{figure.title}. {figure.meaning}\n"]
    return parts


def _cost(table: RunTable, cells: Sequence[Cell]) -> list[str]:
    hours = sum(row.seconds or 0 for row in table.rows) / 3600
    total = f" All finished runs together: {hours:.2f} hours." if hours else ""
    return [
        "## Cost\n",
        cost_table(cells),
        "Means over the seeds. *trained*: number of trained parameters. *steps*: those that were "
        "trained. *best step*: the one that is best on dev. *99% at*: the first step whose score "
        "on dev is at least 99% of the best one of its run. *seconds* and *examples/s*: of the "
        f"training steps alone; compiling and evaluations come on top.{total}\n",
    ]


def _left_out(table: RunTable) -> list[str]:
    if not table.left_out:
        return []
    lines = "".join(f"- `{run}`: {reason}\n" for run, reason in table.left_out)
    return ["## Left out\n", f"These runs are in no number above.\n\n{lines}"]


def _write_rows(table: RunTable, start: Path) -> None:
    """Write the runs as CSV, without what is no column, and as JSONL."""
    records = []
    for row in table.rows:
        record = dataclasses.asdict(row)
        for name in ("study", "options", "identity", "curve"):
            del record[name]
        values = record.pop("values")
        records.append({**record, **values})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*records[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomic(start.with_name(f"{start.name}.csv"), text.getvalue().encode())
    lines = write_lines(table.rows, table.left_out)
    write_atomic(start.with_name(f"{start.name}.jsonl"), lines.encode())


def _cell_result(cell: Cell, metric: Metric) -> dict[str, Any]:
    return {
        "task": cell.task,
        "values": dict(cell.values),
        **cell.summary(metric)._asdict(),
        "dev_score": cell.dev_mean,
        "seeds": [row.seed for row in cell.rows],
    }


def _difference_result(found: Difference) -> dict[str, Any]:
    result: dict[str, Any] = {"compared": dict(found.values), "task": found.task}
    if found.summary is not None:
        result |= found.summary._asdict()
    if found.p is not None:
        result |= {"p": found.p, "equivalent": verdict(found.p)}
    return result
