"""`spt-jax interpret`: what a trained prompt means, as a page."""

from collections.abc import Sequence
from pathlib import Path

from spt_jax.cache import keep_programs
from spt_jax.cli.options import add_fetch_flag, add_run, make_parser, stdout_to_stderr_if
from spt_jax.cli.printing import print_json, print_table


def interpret(argv: Sequence[str]) -> None:
    """Measure what a trained prompt means: words, distances, importance, its parts."""
    parser = make_parser(interpret)
    add_run(parser)
    parser.add_flag(
        "output",
        str | None,
        None,
        "Folder of the page; RUN/interpretation by default.",
        metavar="FOLDER",
    )
    parser.add_flag("rows", int, 128, "Rows of dev that scores and losses are of.")
    parser.add_flag(
        "search_steps",
        int,
        60,
        "Steps of the search for words that do the task, by gradients; 0 for none.",
        metavar="N",
    )
    parser.add_flag("k", int, 3, "Nearest words for each vector.")
    add_fetch_flag(parser)
    flags, _ = parser.read(argv)
    keep_programs()
    folder = Path(flags.run) / "interpretation" if flags.output is None else Path(flags.output)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.evaluation.interpret import interpret as measure
        from spt_jax.evaluation.interpretation import write_interpretation

        found = measure(
            Path(flags.run),
            rows=flags.rows,
            search_steps=flags.search_steps,
            words=flags.k,
            fetch=flags.fetch,
        )
        files = write_interpretation(found, folder)
    if flags.json:
        return print_json({**found, "files": [str(file) for file in files]})
    print_table(
        ("prompt", "score", "rank", "loss"),
        [
            (
                name,
                f"{values['score']:.1f}",
                "-" if values["rank_score"] is None else f"{values['rank_score']:.1f}",
                f"{values['loss']:.3f}",
            )
            for name, values in found["prompts"].items()
        ],
    )
    print(f"\n{files[0]} is written")
