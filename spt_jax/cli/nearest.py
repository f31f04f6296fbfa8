"""`spt-jax nearest`: a prompt as words."""

from collections.abc import Sequence
from pathlib import Path

from spt_jax.cache import keep_programs
from spt_jax.cli.options import add_fetch_flag, add_run, make_parser, stdout_to_stderr_if
from spt_jax.cli.printing import print_json, print_table


def nearest(argv: Sequence[str]) -> None:
    """Show the vocabulary words nearest to each prompt vector."""
    parser = make_parser(nearest)
    add_run(parser)
    parser.add_flag("k", int, 5, "Words for each vector.")
    add_fetch_flag(parser)
    flags, _ = parser.read(argv)
    keep_programs()
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.words import nearest_words

        rows = nearest_words(Path(flags.run), flags.k, fetch=flags.fetch)
    if flags.json:
        return print_json({"run": flags.run, "k": flags.k, "rows": rows})
    print_words(rows)


def print_words(rows: Sequence[dict]) -> None:
    """Print what `prompts.words.words_of` returns as a table."""

    def words(pairs: Sequence[tuple[str, float]]) -> str:
        return "  ".join(f"{word} {value:.2f}" for word, value in pairs)

    print_table(
        ("position", "norm", "by cosine", "by L2"),
        [
            (str(row["position"]), f"{row['norm']:.2f}", words(row["cosine"]), words(row["l2"]))
            for row in rows
        ],
    )
