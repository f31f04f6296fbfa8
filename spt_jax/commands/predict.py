"""`spt-jax predict`: answers of a finished run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from spt_jax.commands.options import add_run, make_parser, stdout_to_stderr_if
from spt_jax.printing import print_json


def predict(argv: Sequence[str]) -> None:
    """Answer texts with a run's best prompt, one line each."""
    parser = make_parser(predict)
    add_run(parser)
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        help="A text; may be given again. Lines of standard input without it.",
    )
    flags, _ = parser.read(argv)
    if not flags.text and sys.stdin.isatty():
        print("texts, one a line; end with Ctrl-D:", file=sys.stderr)
    texts = flags.text or [line.rstrip("\r\n") for line in sys.stdin]
    if not texts:
        raise ValueError("no text is given; use --text='...' or lines of standard input")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.evaluate import predict_run

        predictions = predict_run(Path(flags.run), texts)
    if flags.json:
        print_json({"texts": texts, "predictions": predictions})
    else:
        print(*predictions, sep="\n")
