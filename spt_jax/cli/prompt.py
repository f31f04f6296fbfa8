"""`spt-jax prompt`: prompts of others in, ours out, what is in one, and several together."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from spt_jax.cli.nearest import print_words
from spt_jax.cli.options import make_parser, run_action, stdout_to_stderr_if
from spt_jax.cli.parser import Parser
from spt_jax.cli.printing import print_json, print_result, print_table

_SOURCE = "A run, a prompt.safetensors, a .npy file of Google's, or the folder of a PEFT adapter."


def prompt(argv: Sequence[str]) -> None:
    """Convert, show, compare, combine and publish prompts: prompt import|export|show|push|..."""
    usage = (
        "spt-jax prompt import SOURCE DEST [--model M] [--task NAME]\n"
        "       spt-jax prompt export SOURCE OUT --format peft|npy|safetensors [--base ID]\n"
        "       spt-jax prompt push RUN OWNER/NAME [--private] [--dry-run]\n"
        "       spt-jax prompt show SOURCE [--model M] [--k N]\n"
        "       spt-jax prompt similarity SOURCE SOURCE ... [--to SOURCE]\n"
        "       spt-jax prompt combine DEST RUN[=WEIGHT] ... [--start SOURCE]\n"
        "       spt-jax prompt recycle SOURCE DEST --old MODEL --new MODEL"
    )
    actions = {
        "import": _import,
        "export": _export,
        "push": _push,
        "show": _show,
        "similarity": _similarity,
        "combine": _combine,
        "recycle": _recycle,
    }
    run_action("prompt", actions, usage, argv)


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


def _push(argv: Sequence[str]) -> None:
    """Upload a run's prompt to the Hub, for spt_jax and for PEFT, with a card made from the run."""
    parser = _parser(_push, source=False)
    parser.add_argument("run", help="Folder of a finished run that tuned a prompt.")
    parser.add_argument(
        "repo", metavar="OWNER/NAME", help="Repository of the Hub. It is made if it does not exist."
    )
    parser.add_argument(
        "--private", action="store_true", help="If the repository is made, make it private."
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Write the files to the folder NAME, print what would be sent, and send nothing.",
    )
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.push import push_prompt

        result = push_prompt(
            Path(flags.run), flags.repo, private=flags.private, dry_run=flags.dry_run
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


def _similarity(argv: Sequence[str]) -> None:
    """Print how alike prompts are, or which of them are most like another: what to start from."""
    parser = _parser(_similarity, source=False)
    parser.add_argument("sources", nargs="+", help=f"Two or more of these: {_SOURCE}")
    parser.add_flag(
        "to", str | None, None, "Compare the sources with this prompt alone.", metavar="SOURCE"
    )
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.transfer import similarity

        result = similarity([Path(source) for source in flags.sources], to=flags.to)
    if flags.json:
        return print_json(result)
    if flags.to is not None:
        rows = [
            (row["source"], row["task"] or "-", *(f"{row[name]:.3f}" for name in _COSINES))
            for row in result["nearest"]
        ]
        return print_table(("prompt", "task", "cosine of means", "mean cosine of pairs"), rows)
    for name in _COSINES:
        print(_COSINES[name])
        rows = [
            (source, *(f"{value:.3f}" for value in row))
            for source, row in zip(result["sources"], result[name], strict=True)
        ]
        print_table(("", *result["sources"]), rows)
        print()


_COSINES = {"mean_cosine": "cosine of the mean vectors", "pair_cosine": "mean cosine of all pairs"}


def _combine(argv: Sequence[str]) -> None:
    """Add up what runs learned: the start plus the weighted changes of their prompts."""
    parser = _parser(_combine, source=False)
    parser.add_argument("dest", help="Prompt file to be made.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN[=WEIGHT]", help="Runs and their weights, by default 1."
    )
    parser.add_flag(
        "start",
        str | None,
        None,
        "Prompt that the changes are added to; needed if the runs started from different ones.",
        metavar="SOURCE",
    )
    flags, _ = parser.read(argv)
    parts = dict(_read_part(text) for text in flags.runs)
    if len(parts) < len(flags.runs):
        raise ValueError("a run is given twice; give it once, with the sum of the weights")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.transfer import combine

        result = combine(parts, Path(flags.dest), start=flags.start)
    print_result(result, flags.json)


def _read_part(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():  # sweep names its runs as in seed=0
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the weight of '{name}' is '{weight}', expected a number such as 0.5")
    return name, number


def _recycle(argv: Sequence[str]) -> None:
    """Write a prompt of one model for another, by a linear map between their embeddings."""
    parser = _parser(_recycle)
    parser.add_argument("dest", help="Prompt file to be made.")
    parser.add_flag("old", str | None, None, "Model that it was trained on.", metavar="MODEL")
    parser.add_flag("new", str | None, None, "Model that it is for.", metavar="MODEL")
    flags, _ = parser.read(argv)
    for name in ("old", "new"):
        if getattr(flags, name) is None:
            raise ValueError(f"--{name} is not given, expected a model as --model takes it")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.prompts.transfer import recycle

        result = recycle(Path(flags.source), Path(flags.dest), old=flags.old, new=flags.new)
    print_result(result, flags.json)


def _parser(action: Callable, *, source: bool = True) -> Parser:
    parser = make_parser(prompt)
    parser.prog = f"spt-jax prompt {action.__name__[1:]}"
    parser.description = action.__doc__
    if source:
        parser.add_argument("source", help=_SOURCE)
    return parser
