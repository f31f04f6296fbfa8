"""`spt-jax convert`: a frozen model as a base checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spt_jax.cli.options import make_parser, stdout_to_stderr_if
from spt_jax.cli.printing import print_result


def convert(argv: Sequence[str]) -> None:
    """Write a model as a base checkpoint, which loads fast and sharded."""
    parser = make_parser(convert)
    parser.add_argument(
        "source",
        help="A Hub id, a folder of transformers or T5X, or an address such as gs://bucket/folder.",
    )
    parser.add_argument("dest", help="Folder to be made; then train with --model=DEST.")
    parser.add_flag(
        "dtype",
        Literal["float32", "bfloat16", "int8"],
        "float32",
        "Of the stored weights; int8 is for the matrices, the other leaves stay float32.",
    )
    parser.add_flag(
        "tokenizer",
        str | None,
        None,
        "A spiece.model, a tokenizer.json or a folder with one; T5X checkpoints have none.",
        metavar="PATH",
    )
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.models.backbone import convert_backbone

        result = convert_backbone(
            flags.source, Path(flags.dest), dtype=flags.dtype, tokenizer=flags.tokenizer
        )
    print_result(result, flags.json)
