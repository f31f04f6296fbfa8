"""`spt-jax inspect`: what a model is."""

from collections.abc import Sequence

from spt_jax.cli.options import make_parser, stdout_to_stderr_if
from spt_jax.cli.printing import print_result


def inspect(argv: Sequence[str]) -> None:
    """Describe a model: architecture, parameters, what a prompt costs."""
    parser = make_parser(inspect)
    parser.add_argument(
        "model",
        help="A bundled backbone, a published T5 such as t5-v1_1-small, a folder or a Hub id.",
    )
    parser.add_flag("length", int, 100, "Vectors of the prompt.")
    flags, _ = parser.read(argv)
    if flags.length < 1:
        raise ValueError(f"length is {flags.length}, expected 1 or more")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.models.backbone import describe

        result = describe(flags.model, flags.length)
    print_result(result, flags.json)
