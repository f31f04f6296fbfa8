"""`spt-jax evaluate`: scores of finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spt_jax.commands.options import add_run, make_parser, stdout_to_stderr_if
from spt_jax.printing import print_result


def evaluate(argv: Sequence[str]) -> None:
    """Score a run's best prompt on a split."""
    parser = make_parser(evaluate)
    add_run(parser)
    parser.add_flag("split", Literal["test", "dev", "train"], "test", "Which rows.")
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.evaluate import evaluate_run

        result = evaluate_run(Path(flags.run), flags.split)
    print_result(result, flags.json)
