"""The command `spt-jax`: read the options, call one library function, print what it returns.

Each command imports the library only when it runs, so help and a mistyped option answer before jax
is imported. With `--json`, stdout is one JSON object and everything else goes to stderr. An error
is one line on stderr: exit code 2 for bad input, 1 for a failed run, a traceback with `--debug`.
"""

import contextlib
import dataclasses
import os
import re
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spt_jax import __version__
from spt_jax.argparsing import Parser
from spt_jax.config import TrainConfig, to_dict
from spt_jax.errors import RunError, suggest
from spt_jax.pretrain_config import PretrainConfig
from spt_jax.printing import print_json, print_result, print_table, warnings_on_stderr

_BAD_INPUT = (
    ValueError,
    TypeError,
    KeyError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after `spt-jax`; those of the process by default.

    Returns:
        0, 2 for bad input, 1 for a failed run, 130 for Ctrl-C, 141 for a broken pipe.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with contextlib.suppress(SystemExit), warnings_on_stderr():  # argparse exits after --help
            _dispatch(argv)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        resumes = "; the same command continues it" if argv[0] in ("train", "pretrain") else ""
        print(f"spt-jax: interrupted{resumes}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"spt-jax: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, _BAD_INPUT) else 1


def _dispatch(argv: Sequence[str]) -> None:
    if not argv:
        raise ValueError(f"no command is given; commands: {', '.join(_COMMANDS)}")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(_usage())
    elif name == "--version":
        print(f"spt-jax {__version__}")
    elif name in _COMMANDS:
        _COMMANDS[name](rest)
    else:
        raise ValueError(
            f"unknown command '{name}'; commands: {', '.join(_COMMANDS)}{suggest(name, _COMMANDS)}"
        )


def train(argv: Sequence[str]) -> None:
    """Train a soft prompt for a frozen T5, or continue a run."""
    parser = _parser(train, TrainConfig)
    _add_run_flags(parser)
    parser.add_flag(
        "seeds",
        str | None,
        None,
        "Train once for each seed, in WORKDIR/seed_S, and print mean and sample deviation.",
        metavar="S,S,...",
    )
    flags, config = parser.read(argv)
    if flags.print_config:
        return _print_config(config)
    seeds = None if flags.seeds is None else _read_seeds(flags.seeds)
    workdir = _workdir(flags, config.task.name or Path(config.task.source).stem)
    options = {"overwrite": flags.overwrite, "command": ["spt-jax", "train", *argv]}
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.train import fit

        if seeds is None:
            result = fit(config, workdir, **options)
        else:
            result = _summary(
                [
                    fit(dataclasses.replace(config, seed=seed), workdir / f"seed_{seed}", **options)
                    for seed in seeds
                ]
            )
    print_result(result, flags.json)


def pretrain(argv: Sequence[str]) -> None:
    """Pretrain a small T5 from scratch, or continue a run."""
    parser = _parser(pretrain, PretrainConfig)
    _add_run_flags(parser)
    flags, config = parser.read(argv)
    if flags.print_config:
        return _print_config(config)
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.pretrain import pretrain as run

        result = run(
            config,
            _workdir(flags, config.name),
            overwrite=flags.overwrite,
            command=["spt-jax", "pretrain", *argv],
        )
    print_result(result, flags.json)


def evaluate(argv: Sequence[str]) -> None:
    """Score a run's best prompt on a split."""
    parser = _parser(evaluate)
    _add_run(parser)
    parser.add_flag("split", Literal["test", "dev", "train"], "test", "Which rows.")
    flags, _ = parser.read(argv)
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.evaluate import evaluate_run

        result = evaluate_run(Path(flags.run), flags.split)
    print_result(result, flags.json)


def predict(argv: Sequence[str]) -> None:
    """Answer texts with a run's best prompt, one line each."""
    parser = _parser(predict)
    _add_run(parser)
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
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.evaluate import predict_run

        predictions = predict_run(Path(flags.run), texts)
    if flags.json:
        print_json({"texts": texts, "predictions": predictions})
    else:
        print(*predictions, sep="\n")


def nearest(argv: Sequence[str]) -> None:
    """Show the vocabulary words nearest to each prompt vector."""
    parser = _parser(nearest)
    _add_run(parser)
    parser.add_flag("k", int, 5, "Words for each vector.")
    flags, _ = parser.read(argv)
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.interpret import nearest_words

        rows = nearest_words(Path(flags.run), flags.k)
    if flags.json:
        return print_json({"run": flags.run, "k": flags.k, "rows": rows})

    def words(pairs: Sequence[tuple[str, float]]) -> str:
        return "  ".join(f"{word} {value:.2f}" for word, value in pairs)

    print_table(
        ("position", "norm", "by cosine", "by L2"),
        [
            (str(row["position"]), f"{row['norm']:.2f}", words(row["cosine"]), words(row["l2"]))
            for row in rows
        ],
    )


def inspect(argv: Sequence[str]) -> None:
    """Describe a model: architecture, parameters, what a prompt costs."""
    parser = _parser(inspect)
    parser.add_argument(
        "model", help="A bundled backbone, a published T5 such as t5-v1_1-small, or a folder."
    )
    parser.add_flag("length", int, 100, "Vectors of the prompt.")
    flags, _ = parser.read(argv)
    if flags.length < 1:
        raise ValueError(f"length is {flags.length}, expected 1 or more")
    with _stdout_to_stderr_if(flags.json):
        from spt_jax.backbone import describe

        result = describe(flags.model, flags.length)
    print_result(result, flags.json)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (train, evaluate, predict, nearest, inspect, pretrain)
}


def _parser(command: Callable, config: type | None = None) -> Parser:
    parser = Parser(command.__name__, command.__doc__ or "", config)
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON object on stdout, and everything else on stderr.",
    )
    parser.add_argument("--debug", action="store_true", help="Print the traceback of an error.")
    return parser


def _add_run(parser: Parser) -> None:
    parser.add_argument("run", help="Folder of a training run, such as runs/quickstart.")


def _add_run_flags(parser: Parser) -> None:
    parser.add_flag(
        "workdir",
        str | None,
        None,
        "Folder of the run; runs/<name of the config or task> by default.",
        metavar="DIR",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Start over: delete what the folder holds."
    )


def _workdir(flags: Any, name: str) -> Path:
    if flags.workdir is not None:
        return Path(flags.workdir)
    name = Path(flags.config[-1]).stem if flags.config else name
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "unnamed")


def _read_seeds(text: str) -> list[int]:
    seeds = [int(seed) for seed in text.split(",") if re.fullmatch("[0-9]+", seed)]
    if len({*seeds}) < text.count(",") + 1:
        raise ValueError(f"--seeds is '{text}', expected different whole numbers such as 0,1,2")
    return seeds


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation of each score over the runs, and the runs."""
    summary: dict[str, Any] = {"task": runs[0].get("task"), "seeds": [run["seed"] for run in runs]}
    for key in runs[0]:
        scores = [run[key] for run in runs if run.get(key) is not None]
        if key.endswith("score") and len(scores) == len(runs):
            summary[key] = statistics.mean(scores)
            summary[f"{key}_deviation"] = statistics.stdev(scores) if len(scores) > 1 else None
    return {**summary, "runs": [dict(run) for run in runs]}


def _stdout_to_stderr_if(condition: bool) -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(sys.stderr) if condition else contextlib.nullcontext()


def _print_config(config: Any) -> None:
    import yaml

    print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    else:
        message = str(error)
    message = " ".join(message.split()) or "no message"
    known = isinstance(error, (RunError, OSError, *_BAD_INPUT))
    return message if known else f"{type(error).__name__}: {message}"


def _usage() -> str:
    commands = "\n".join(f"  {name:<10}{run.__doc__}" for name, run in _COMMANDS.items())
    return (
        "usage: spt-jax COMMAND [OPTIONS]\n\nSoft prompts for a frozen T5.\n\n"
        f"commands:\n{commands}\n\n"
        "`spt-jax COMMAND --help` explains every option; `spt-jax --version` prints the version.\n"
        "Exit codes: 0; 2 bad input; 1 the run failed."
    )
