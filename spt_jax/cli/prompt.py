"""`spt-jax prompt`: prompts of others in, ours out, and what is in one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from spt_jax.cli.nearest import print_words
from spt_jax.cli.options import make_parser, run_action, stdout_to_stderr_if
from spt_jax.cli.parser import Parser
from spt_jax.cli.printing import print_json, print_result

_SOURCE = "A run, a prompt.safetensors, a .npy file of Google's, or the folder of a PEFT adapter."


def prompt(argv: Sequence[str]) -> None:
    """Read and write prompts of PEFT and of Google's code: prompt import|export|show."""
    usage = (
        "spt-jax prompt import SOURCE DEST [--model M] [--task NAME]\n"
        "       spt-jax prompt export SOURCE OUT --format peft|npy|safetensors [--base ID]\n"
        "       spt-jax prompt show SOURCE [--model M] [--k N]"
    )
    run_action("prompt", {"import": _import, "export": _export, "show": _show}, usage, argv)


def _import(argv: Sequence[str]) -> None:
    """Write a prompt of PEFT or of Google's code as a prompt file, checked."""
    parser = _parser(_import)
    parser.add_argument("dest", help="Prompt file to be made, such as prompts/sst2.safetensors.")
    parser.add_flag(
        "model",
        str | None,
        None,
        "The frozen model that it was trained on: checks the width, and keeps the fingerprint.",
        metavar="M",
    )
    parser.add_flag("task", str | None, None, "Its task, kept with it.", metavar="NAME")
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.convert import import_prompt

        result = import_prompt(
            Path(flags.source), Path(flags.dest), model=flags.model, task=flags.task
        )
    print_result(result, flags.json)


def _export(argv: Sequence[str]) -> None:
    """Write a prompt for PEFT, for Google's code, or as a prompt file."""
    parser = _parser(_export)
    parser.add_argument("out", help="File to be made; with --format=peft, a folder.")
    parser.add_flag(
        "format",
        Literal["peft", "npy", "safetensors"] | None,
        None,
        "Of OUT; it must be given.",
    )
    parser.add_flag(
        "base",
        str | None,
        None,
        "With peft, the model as transformers loads it; the name kept with the prompt by default.",
        metavar="ID",
    )
    flags, _ = parser.read(argv)
    if flags.format is None:
        raise ValueError("--format is not given, expected peft, npy or safetensors")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.convert import export_prompt

        result = export_prompt(
            Path(flags.source), Path(flags.out), format=flags.format, base=flags.base
        )
    print_result(result, flags.json)


def _show(argv: Sequence[str]) -> None:
    """Print a prompt's model, task, scores, norms and nearest words."""
    parser = _parser(_show)
    parser.add_flag(
        "model",
        str | None,
        None,
        "Model whose words are compared. Without it, the model that the prompt names is used if it "
        "is bundled or a folder on this machine; nothing is downloaded.",
        metavar="M",
    )
    parser.add_flag("k", int, 3, "Words for each vector; 0 for none, which needs no model.")
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.words import show_prompt

        result: dict[str, Any] = show_prompt(Path(flags.source), model=flags.model, k=flags.k)
    if flags.json:
        return print_json(result)
    rows = result.pop("rows", None)
    print_result(result, False)
    if rows is not None:
        print()
        print_words(rows)


def _parser(action: Callable) -> Parser:
    parser = make_parser(prompt)
    parser.prog = f"spt-jax prompt {action.__name__[1:]}"
    parser.description = action.__doc__
    parser.add_argument("source", help=_SOURCE)
    return parser
