# matplotlib is an extra, so that types are checked without it too.
# pyright: reportMissingImports=false
"""Draw the figures of a study as SVG: learning curves, scores over an option, heat maps over two.

A line is the mean over the seeds, and the band around it is the interval of the mean. Every task
has a panel. The same runs give the same bytes, so a figure changes in version control only with its
runs.
"""

import contextlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.studies.cells import (
    Cell,
    Metric,
    Values,
    choose_by_dev,
    is_number,
    tasks_of,
    value_text,
    values_of,
    values_text,
)
from spt_jax.studies.statistics import summarize

COLORS = ("#1b6ca8", "#c2571a", "#3c8d5a", "#7a4fa0", "#b8860b", "#a03050", "#4a9aa0", "#555555")
COLUMNS = 3
MOST_LINES = len(COLORS)


class Figure(NamedTuple):
    """A figure that was drawn.

    Args:
        file: The SVG file.
        title: Its title.
        meaning: What it shows, in a sentence.
    """

    file: Path
    title: str
    meaning: str


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_figures(cells: Sequence[Cell], metric: Metric, start: Path) -> list[Figure]:
    """Draw every figure that the runs allow.

    Args:
        cells: All cells.
        metric: Metric of the figures but the learning curves, which show the dev score.
        start: Path that the names of the files begin with: `runs/report` gives
            `runs/report_curves.svg`.
    """
    figures = []
    if any(len(row.curve) > 1 for cell in cells for row in cell.rows):
        file = start.with_name(f"{start.name}_curves.svg")
        _draw_curves(cells, file)
        figures.append(
            Figure(
                file,
                "Learning curves",
                "The dev score at each evaluation that all seeds of a cell have. With more than "
                f"{MOST_LINES} cells of a task, those that are best on dev are shown.",
            )
        )
    numeric = [field for field in cells[0].values if _is_numeric(cells, field)]
    for field in numeric:
        file = start.with_name(f"{start.name}_over_{field}.svg")
        lines = _lines(cells, field)
        _draw_over(cells, field, lines, metric, file)
        rest = _chosen_by_dev(cells, [field, *lines[0]])
        figures.append(
            Figure(file, f"{metric} over {field}", f"The mean {metric} over the seeds.{rest}")
        )
    for x, y in itertools.combinations(numeric, 2):
        if not _is_grid(cells, x, y):
            continue
        file = start.with_name(f"{start.name}_heat_{x}_{y}.svg")
        _draw_heat(cells, x, y, metric, file)
        rest = _chosen_by_dev(cells, [x, y])
        meaning = f"The mean {metric} over the seeds.{rest}"
        figures.append(Figure(file, f"{metric} over {x} and {y}", meaning))
    return figures


def _draw_curves(cells: Sequence[Cell], file: Path) -> None:
    shown = [
        cell
        for task in tasks_of(cells)
        for cell in sorted(
            (cell for cell in cells if cell.task == task), key=lambda cell: -cell.dev_mean
        )[:MOST_LINES]
    ]
    shown.sort(key=cells.index)
    colors = _colors([values_text(cell.values) for cell in shown])
    with _panels(file, tasks_of(cells)) as panels:
        for cell in shown:
            curves = [dict(row.curve) for row in cell.rows]
            steps = sorted(set.intersection(*map(set, curves)))
            label, panel = values_text(cell.values), panels[cell.task]
            samples = [[curve[step] for curve in curves] for step in steps]
            _line(panel, steps, samples, colors[label], label or "all runs")
        for panel in panels.values():
            _label(panel, "step", "dev score")


def _draw_over(
    cells: Sequence[Cell], field: str, lines: Sequence[Values], metric: Metric, file: Path
) -> None:
    colors = _colors([values_text(line) for line in lines])
    with _panels(file, tasks_of(cells)) as panels:
        for task, panel in panels.items():
            for line in lines:
                points = {
                    value: cell
                    for value in values_of(cells, field)
                    if is_number(value)
                    and (cell := choose_by_dev(cells, task, {**line, field: value})) is not None
                }
                label = values_text(line)
                samples = [[getattr(r, metric) for r in cell.rows] for cell in points.values()]
                _line(panel, list(points), samples, colors[label], label, marker="o")
            numbers = [value for value in values_of(cells, field) if is_number(value)]
            if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
                panel.set_xscale("log")
            panel.set_xticks(numbers, [value_text(value) for value in numbers])
            panel.minorticks_off()
            _label(panel, field, metric)


def _draw_heat(cells: Sequence[Cell], x: str, y: str, metric: Metric, file: Path) -> None:
    columns, rows = values_of(cells, x), values_of(cells, y)
    with _panels(file, tasks_of(cells)) as panels:
        for task, panel in panels.items():
            means = [[float("nan")] * len(columns) for _ in rows]
            for i, below in enumerate(rows):
                for j, beside in enumerate(columns):
                    cell = choose_by_dev(cells, task, {x: beside, y: below})
                    if cell is not None:
                        means[i][j] = cell.summary(metric).mean
                        panel.text(j, i, f"{means[i][j]:.1f}", ha="center", va="center", size=8)
            panel.imshow(means, origin="lower", aspect="auto", cmap="YlGnBu", alpha=0.7)
            panel.set_xticks(range(len(columns)), list(map(value_text, columns)))
            panel.set_yticks(range(len(rows)), list(map(value_text, rows)))
            panel.set_xlabel(x)
            panel.set_ylabel(y)


def _is_numeric(cells: Sequence[Cell], field: str) -> bool:
    """Return whether an option has two or more numbers, and nothing else but null."""
    values = [value for value in values_of(cells, field) if value is not None]
    return len(values) > 1 and all(map(is_number, values))


def _is_grid(cells: Sequence[Cell], x: str, y: str) -> bool:
    """Return whether two options vary independently of each other in some task."""
    for task in tasks_of(cells):
        pairs = {(cell.values[x], cell.values[y]) for cell in cells if cell.task == task}
        if len(pairs) > max(len({pair[axis] for pair in pairs}) for axis in (0, 1)):
            return True
    return False


def _lines(cells: Sequence[Cell], field: str) -> list[Values]:
    """Return the values of each line: those of the other option if there is one and it has few."""
    others = [name for name in cells[0].values if name != field]
    if len(others) == 1 and len(values := values_of(cells, others[0])) <= MOST_LINES:
        return [{others[0]: value} for value in values]
    return [{}]


def _chosen_by_dev(cells: Sequence[Cell], shown: Sequence[str]) -> str:
    """Return the sentence about the options that a figure does not show."""
    rest = [name for name in cells[0].values if name not in shown]
    return f" Each point has the {' and '.join(rest)} that is best on dev." if rest else ""


def _colors(labels: Sequence[str]) -> Mapping[str, str]:
    return dict(zip(dict.fromkeys(labels), itertools.cycle(COLORS)))


def _line(
    panel: Any, at: Sequence, samples: Sequence[Sequence[float]], color: str, label: str, **how: Any
) -> None:
    """Draw means with a band from the lower to the upper ends of their intervals."""
    found = [summarize(sample) for sample in samples]
    panel.plot(at, [s.mean for s in found], color=color, label=label or None, **how)
    low = [s.mean if s.low is None else s.low for s in found]
    high = [s.mean if s.high is None else s.high for s in found]
    panel.fill_between(at, low, high, color=color, alpha=0.2, lw=0)


def _label(panel: Any, x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", lw=0.5)
    panel.set_axisbelow(True)


@contextlib.contextmanager
def _panels(file: Path, tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Make a panel for each task, and save the figure to `file` at the end."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    columns, rows = min(COLUMNS, len(tasks)), -(-len(tasks) // COLUMNS)
    with matplotlib.rc_context({"svg.hashsalt": "spt_jax", "svg.fonttype": "none"}):
        canvas = Canvas(figsize=(2.4 + 3.2 * columns, 0.6 + 2.8 * rows), layout="constrained")
        panels = list(canvas.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(tasks) :]:
            panel.remove()
        for panel, task in zip(panels, tasks):
            panel.set_title(task, fontsize="medium")
        yield dict(zip(tasks, panels))
        _legend(canvas, columns)
        # Neither the date nor the version: the bytes are a function of the runs.
        canvas.savefig(file, facecolor="white", metadata={"Date": None, "Creator": None})


def _legend(canvas: Any, columns: int) -> None:
    """Draw one legend below all panels, with each label once, if there are labels."""
    pairs = [zip(*panel.get_legend_handles_labels()) for panel in canvas.axes]
    handles = {label: handle for panel in pairs for handle, label in panel}
    options: dict = dict(loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    if handles:
        canvas.legend(handles.values(), handles, **options)
