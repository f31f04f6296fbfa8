# matplotlib is an extra, so that types are checked without it too.
# pyright: reportMissingImports=false
"""Draw the figures of the results as SVG: learning curves, prompt lengths, inits.

A line or bar is the mean over the seeds. A band or whisker goes from the worst to the best seed.
The same runs give the same bytes, so a figure changes in version control only with its runs.
"""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.grid import MODEL, PROMPT
from study.tables import TaskResults

COLORS = {PROMPT: "#1b6ca8", MODEL: "#c2571a"}
CYCLE = ("#1b6ca8", "#c2571a", "#3c8d5a", "#7a4fa0")
GREY = "#777777"
COLUMNS = 3


def draw_curves(results: Sequence[TaskResults], file: Path) -> None:
    """Draw the dev score by step for prompt and model tuning, one panel for each task."""
    columns, rows = min(COLUMNS, len(results)), -(-len(results) // COLUMNS)
    with _figure(file, (3.3 * columns, 2.5 * rows)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for task, panel in zip(results, panels, strict=False):
            for method in (PROMPT, MODEL):
                steps, low, mean, high = _curve(task, method)
                if steps:
                    label = method.replace("_", " ")
                    panel.plot(steps, mean, color=COLORS[method], label=label)
                    panel.fill_between(steps, low, high, color=COLORS[method], alpha=0.2, lw=0)
            majority = task.baselines["majority_score"]
            panel.axhline(majority, color=GREY, lw=1, ls="--", label="majority (on test)")
            _label(panel, task.title, "step", "dev score")
        for panel in list(panels):  # those that are left without a task
            panel.remove()
        _legend(figure)


def draw_lengths(results: Sequence[TaskResults], methods: Mapping[str, str], file: Path) -> None:
    """Draw the test score by the length of the prompt, one line for each task."""
    with _figure(file, (6.4, 3.6)) as figure:
        axes = figure.subplots()
        for task, color in zip(results, CYCLE, strict=False):
            found = {int(n): v for n, m in methods.items() if (v := task.values(m, "score"))}
            mean = [statistics.mean(values) for values in found.values()]
            low = [m - min(values) for m, values in zip(mean, found.values(), strict=True)]
            high = [max(values) - m for m, values in zip(mean, found.values(), strict=True)]
            axes.errorbar(
                list(found), mean, [low, high], color=color, marker="o", capsize=3, label=task.title
            )
            axes.axhline(task.baselines["majority_score"], color=color, lw=1, ls="--")
        axes.set_xscale("log")
        axes.set_xticks([int(length) for length in methods], list(methods))
        axes.minorticks_off()
        _label(axes, "Dashed: the majority class", "vectors of the prompt", "test score")
        axes.legend(frameon=False)


def draw_inits(results: Sequence[TaskResults], methods: Mapping[str, str], file: Path) -> None:
    """Draw the test score by the prompt's init, one group of bars for each task."""
    with _figure(file, (6.4, 3.6)) as figure:
        axes = figure.subplots()
        width = 0.8 / len(methods)
        for number, (init, method) in enumerate(methods.items()):
            for place, task in enumerate(results):
                if values := task.values(method, "score"):
                    mean, at = statistics.mean(values), place + (number + 0.5) * width - 0.4
                    spread = [[mean - min(values)], [max(values) - mean]]
                    axes.bar(at, mean, 0.9 * width, color=CYCLE[number % 4], label=init)
                    axes.errorbar(at, mean, spread, color="black", lw=1, capsize=3)
        for place, task in enumerate(results):
            majority = task.baselines["majority_score"]
            axes.plot([place - 0.4, place + 0.4], [majority] * 2, color="black", lw=1, ls="--")
        axes.set_xticks(range(len(results)), [task.title for task in results])
        _label(axes, "Dashed: the majority class", "", "test score")
        _legend(figure)


def _curve(task: TaskResults, method: str) -> tuple[list, list, list, list]:
    """Return the steps that every seed has, and the least, mean and largest dev score there."""
    curves = [dict(record.curve) for record in task.records.get(method, ())]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    scores = [[curve[step] for curve in curves] for step in steps]
    return (
        steps,
        [min(values) for values in scores],
        [statistics.mean(values) for values in scores],
        [max(values) for values in scores],
    )


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)


def _legend(figure: Any) -> None:
    """Draw one legend below all panels, with each label once."""
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {label: handle for panel in pairs for handle, label in panel}
    options: dict = dict(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.legend(handles.values(), handles, **options)


@contextlib.contextmanager
def _figure(file: Path, inches: tuple[float, float]) -> Iterator[Any]:
    """Make an empty figure and save it to `file` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "spt_jax", "svg.fonttype": "none"}):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure
        file.parent.mkdir(parents=True, exist_ok=True)
        # Neither the date nor the version: the bytes are a function of the runs.
        metadata = {"Date": None, "Creator": None} if file.suffix == ".svg" else None
        figure.savefig(file, facecolor="white", metadata=metadata)
