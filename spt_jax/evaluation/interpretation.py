# matplotlib is an extra, so that types are checked without it too.
# pyright: reportMissingImports=false
"""The page of what a prompt means: Markdown with tables, a figure, and the numbers as JSON."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spt_jax.runs.log import write_atomic

PAGE, FIGURE, NUMBERS = "interpretation.md", "interpretation.svg", "interpretation.json"

COLORS = {"vocabulary": "#c8c8c8", "start": "#1b6ca8", "trained": "#c2571a", "random": "#3c8d5a"}

SHAPE = ("norm", "distance", "cosine", "start_words")


def write_interpretation(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the page, its figure if matplotlib is installed, and its numbers.

    Args:
        found: What `interpret` returns.
        folder: Folder of the files, which is made.

    Returns:
        The files.

    Raises:
        RunError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / PAGE, folder / NUMBERS]
    if importlib.util.find_spec("matplotlib") is not None:
        _draw(found["plane"], folder / FIGURE)
        files.append(folder / FIGURE)
    numbers = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / NUMBERS, numbers.encode("utf-8", "replace"))
    page = "\n".join(_page(found, has_figure=len(files) == 3)) + "\n"
    write_atomic(folder / PAGE, page.encode("utf-8", "replace"))
    return files


def _page(found: Mapping[str, Any], *, has_figure: bool) -> list[str]:
    prompts = found["prompts"]
    shaped = [name for name in ("trained", "start", "random") if name in prompts]
    lines = [
        f"# What the prompt of {found['length']} vectors for {found['task']} means",
        "",
        f"Model: {found['model']}. Scores and losses are of {found['rows']} rows of dev, a fixed "
        f"random sample; always answering the majority class scores {found['majority_score']:.1f} "
        "on all of dev.",
        "",
        "## Where it is",
        "",
        "The trained prompt, the prompt before training, and vectors of random directions that "
        "are as long as the trained ones. *norm* and *distance* (to the nearest embedding) are in "
        "units of the mean norm of embeddings; *cosine* is that with the nearest embedding by "
        "cosine; *start words* is the share of vectors whose nearest word is that of the start.",
        "",
        *_table(
            ("prompt", "score", "rank", "loss", "norm", "distance", "cosine", "start words"),
            [
                (name, *_scores(prompts[name]), *(_text(prompts[name].get(key)) for key in SHAPE))
                for name in shaped
            ],
        ),
    ]
    if has_figure:
        lines += [
            "",
            f"![vectors and embeddings]({FIGURE})",
            "",
            "The plane of most variance among these vectors and a sample of the embeddings.",
        ]
    lines += [
        "",
        "## What of it counts",
        "",
        "*words* replace each vector by an embedding: the nearest by cosine, the nearest by L2, or "
        "one found by a search with gradients. *best n vectors* keeps those whose absence raises "
        "the loss most. *order* is a random order of the vectors.",
        "",
        *_table(
            ("prompt", "score", "rank", "loss"),
            [
                (name, *_scores(values))
                for name, values in prompts.items()
                if name not in shaped or name == "trained"
            ],
        ),
    ]
    if found["searched_words"] is not None:
        lines += ["", f"The words by search: `{_cell(found['searched_words'])}`"]
    lines += [
        "",
        "## Vector by vector",
        "",
        "*importance* is the rise of the loss without the vector, in nats per target token.",
        "",
        *_table(
            ("position", "importance", "norm", "by cosine", "by L2"),
            [
                (
                    row["position"],
                    f"{row['importance']:+.4f}",
                    f"{row['norm']:.2f}",
                    _words(row["cosine"]),
                    _words(row["l2"]),
                )
                for row in found["positions"]
            ],
        ),
        "",
        "## What the decoder says to the prompt alone",
        "",
        "No input but its end marker. The decoder reads the output of so many layers of the "
        "encoder, after the encoder's final norm; the last row is the whole model.",
        "",
        *_table(
            ("layers", *shaped),
            [
                (row["layer"], *(f"`{_cell(row[name])}`" if row[name] else "" for name in shaped))
                for row in found["alone"]
            ],
        ),
    ]
    return lines


def _scores(values: Mapping[str, Any]) -> tuple[str, str, str]:
    rank = values["rank_score"]
    return (
        f"{values['score']:.1f}",
        "" if rank is None else f"{rank:.1f}",
        f"{values['loss']:.3f}",
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _words(pairs: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"`{_cell(word)}` {value:.2f}" for word, value in pairs)


def _cell(text: str) -> str:
    """Return text that does not end a cell of a table or its own quotes."""
    return " ".join(text.replace("`", "'").replace("|", "¦").split())


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _draw(plane: Mapping[str, Sequence[Sequence[float]]], file: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "spt_jax", "svg.fonttype": "none"}):
        canvas = Figure(figsize=(6, 4.5), layout="constrained")
        axes = canvas.subplots()
        for name, points in plane.items():
            x, y = zip(*points)
            size = 4 if name == "vocabulary" else 22
            axes.scatter(x, y, s=size, color=COLORS[name], label=name, linewidths=0)
        axes.legend(fontsize="small", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.savefig(file, facecolor="white", metadata={"Date": None, "Creator": None})
