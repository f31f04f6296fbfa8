"""`spt-jax report`: the runs of a study as a page with tables and figures."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spt_jax.cli.options import make_parser, stdout_to_stderr_if
from spt_jax.cli.printing import print_json, print_table


def report(argv: Sequence[str]) -> None:
    """Compare the finished runs in a folder: tables with intervals, figures, tests."""
    parser = make_parser(report)
    parser.add_argument(
        "folder",
        help="Folder with training runs in it, at any depth, such as that of a sweep. Runs that "
        "differ in nothing but their seed are one cell of the tables. Instead of the folder, the "
        ".jsonl file that its report wrote.",
    )
    parser.add_flag(
        "output",
        str | None,
        None,
        "Markdown file to write; FOLDER/report.md by default, or the .jsonl file's name with the "
        "ending .md. Figures, a .csv and a .jsonl file with the runs are written beside it.",
        metavar="FILE",
    )
    parser.add_flag(
        "metric",
        Literal["score", "rank_score", "dev_score"],
        "score",
        "What is reported: the score on test of what the model writes, the score on test of the "
        "likeliest label word, or the score on dev. Settings are chosen by the score on dev in any "
        "case.",
    )
    parser.add_flag(
        "compare",
        str | None,
        None,
        "Setting that all others are compared with, such as prompt.length=100, or several with "
        "commas. A difference is taken between runs of the same task and seed.",
        metavar="OPTION=VALUE",
    )
    parser.add_flag(
        "margin",
        float | None,
        None,
        "With --compare, test which settings are as good within so many points.",
        metavar="POINTS",
    )
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.studies.page import NO_FIGURES, can_draw
        from spt_jax.studies.page import report as write_report

        result = write_report(
            Path(flags.folder),
            None if flags.output is None else Path(flags.output),
            metric=flags.metric,
            baseline=flags.compare,
            margin=flags.margin,
        )
        if not can_draw():
            print(f"spt-jax: {NO_FIGURES}", file=sys.stderr)
    if flags.json:
        return print_json(result)
    _print(result)


def _print(result: Mapping[str, Any]) -> None:
    """Print the cells as a table, and where the page is."""
    fields = list(result["cells"][0]["values"])
    print_table(
        ("task", *fields, "n", result["metric"], "interval"),
        [
            (
                cell["task"],
                *(str(cell["values"][name]) for name in fields),
                str(cell["n"]),
                f"{cell['mean']:.1f}",
                "-" if cell["low"] is None else f"{cell['low']:.1f} to {cell['high']:.1f}",
            )
            for cell in result["cells"]
        ],
    )
    left_out = f", {len(result['left_out'])} left out" if result["left_out"] else ""
    print(f"\n{result['output']} is written, with {result['runs']} runs in it{left_out}")
