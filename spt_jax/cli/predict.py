"""`spt-jax predict`: answers of a finished run, or of one model with many prompts to many rows."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spt_jax.cli.options import (
    add_decode_flags,
    add_distributed_flags,
    add_dtype_flags,
    add_fetch_flag,
    add_mesh_flags,
    add_prompt_flag,
    connected,
    make_parser,
    read_decode_flags,
    read_mesh_flags,
    read_prompt_flag,
    stdout_to_stderr_if,
)
from spt_jax.cli.parser import Parser
from spt_jax.cli.printing import print_json, print_result
from spt_jax.config.decode import WINDOW, DecodeConfig
from spt_jax.config.train import DataConfig
from spt_jax.errors import FailedRows, require, visible

if TYPE_CHECKING:
    from spt_jax.prediction.given import Given

_RUN_FLAGS = "run text input raw inputs_length fetch mesh distributed json debug".split()
_USAGE = """spt-jax predict RUN [--text TEXT ... | --input ROWS] [--raw]
       spt-jax predict --model M [--prompt NAME=PATH ...] [--input ROWS] [--output OUT] [OPTIONS]"""

_DETAILS = """What is answered goes through the template of the run, as its training rows did. ROWS
have the fields of the template by name; a text stands for the field of a template with one. A run
of a built-in task or of a task of the papers has no template: its texts are finished inputs, as
`spt-jax data show NAME` prints those of the task. With --raw all texts are finished inputs.

With RUN, an answer is a line of text; a row that cannot be answered has an empty line, a line with
the reason on standard error, and the exit code is 3. With --model, a row {"prompt": NAME, "text":
TEXT}, or with the fields of the template of NAME in place of "text", comes out with "output" at its
end. It may have other fields. A row without "prompt" has the only prompt if there are not several,
and one with null has none; blank lines are left out. OUT appears when all its rows are there; until
then they are in OUT.partial, and the same command, given again after a kill, continues there (not
where the input is a stream). A row that cannot be answered goes to OUT.errors.jsonl with its line
number and the reason, the others are answered, and the exit code is 3. OUT.run.json says what the
rows depend on."""


def predict(argv: Sequence[str]) -> None:
    """Answer texts with a run's best prompt, or rows of JSONL with many prompts of one model."""
    parser = make_parser(predict)
    parser.usage, parser.epilog = _USAGE, _DETAILS
    parser.add_argument("run", nargs="?", help="Folder of a training run, such as runs/quickstart.")
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        help="A text; may be given again. Standard input, a text a line, without it.",
    )
    add_fetch_flag(parser)
    _add_row_flags(parser)
    flags, _ = parser.read(argv)
    if flags.text and flags.input is not None:
        raise ValueError("both --text and --input are given, expected one of them")
    if flags.model is None:
        _require_text_flags(parser, flags)
        with connected(flags, "predict", argv):
            _answer_texts(flags)
    elif flags.run is not None:
        raise ValueError(
            f"both the run '{flags.run}' and --model={flags.model} are given; for rows give "
            f"--prompt=NAME={flags.run} instead of the run"
        )
    elif flags.fetch:
        raise ValueError("--fetch is about the config of a run, but --model names the model itself")
    else:
        _answer_rows(flags, argv)


def _add_row_flags(parser: Parser) -> None:
    parser.add_flag(
        "model", str | None, None, "Frozen model, as `spt-jax train --model` takes it.", metavar="M"
    )
    add_prompt_flag(parser)
    parser.add_argument(
        "--input",
        metavar="ROWS",
        help="JSONL, CSV, TSV or Parquet; - is JSONL on standard input, the default with --model.",
    )
    parser.add_argument(
        "--raw", action="store_true", help="Texts are finished inputs: apply no template."
    )
    parser.add_argument("--output", metavar="OUT", help="JSONL; - is standard output, the default.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Start over: delete OUT of another run."
    )
    data = DataConfig()
    parser.add_flag(
        "inputs_length",
        int | None,
        None,
        "Most tokens of a text, with the end marker. That of the run by default, and "
        f"{data.inputs_length} with --model.",
    )
    parser.add_flag(
        "targets_length", int, data.targets_length, "Most tokens of an answer, with the end marker."
    )
    parser.add_flag("batch_size", int, data.batch_size, "Rows of a batch.")
    parser.add_flag(
        "window",
        int,
        WINDOW,
        "Lines that are read and sorted by length together. A kill costs one window's work.",
    )
    add_dtype_flags(parser)
    add_mesh_flags(parser)
    add_distributed_flags(parser)
    parser.add_flag("seed", int, 0, "For sampling.")
    parser.add_argument(
        "--scores", action="store_true", help="Add scores: log-probabilities, see length_penalty."
    )
    add_decode_flags(parser)


def _require_text_flags(parser: Parser, flags: Any) -> None:
    defaults = parser.get_defaults()
    for name in vars(defaults):
        if name not in _RUN_FLAGS and flags[name] != defaults[name]:
            raise ValueError(f"--{name} goes with --model, but no --model is given")
    if flags.run is None:
        raise ValueError("neither a run nor --model is given; see spt-jax predict --help")


def _read_given(flags: Any) -> "list[Given]":
    from spt_jax.prediction.given import Given, read_json_lines, read_rows, read_texts

    if flags.input == "-":
        return read_json_lines(sys.stdin.buffer)
    if flags.input is not None:
        return read_rows(flags.input, Path(flags.run))
    if flags.text:
        return [Given(f"text {number}", text) for number, text in enumerate(flags.text, 1)]
    if sys.stdin.isatty():
        print("texts, one a line; end with Ctrl-D:", file=sys.stderr)
    if not (texts := read_texts(sys.stdin.buffer)):
        raise ValueError("no text is given; use --text='...' or lines of standard input")
    return texts


def _answer_texts(flags: Any) -> None:
    """Print an answer for each row, and an empty line for a row that cannot be answered."""
    with stdout_to_stderr_if(flags.json):
        from spt_jax.distributed.main_process import on_main
        from spt_jax.prediction.run import answer_run

        given = on_main(lambda: _read_given(flags))
        readable = [number for number, row in enumerate(given) if row.problem is None]
        answers = answer_run(
            Path(flags.run),
            [given[number].row for number in readable],
            inputs_length=flags.inputs_length,
            raw=flags.raw,
            mesh=read_mesh_flags(flags),
            fetch=flags.fetch,
        )
    predictions = dict(zip(readable, answers.texts, strict=True))
    problems = {number: row.problem for number, row in enumerate(given) if row.problem}
    problems |= {readable[number]: problem for number, problem in answers.problems.items()}
    texts = [predictions.get(number) for number in range(len(given))]
    failed = [
        {"place": given[number].place, "error": problems[number]} for number in sorted(problems)
    ]
    if flags.json:
        rows = [row for _, row, _ in given]
        print_json({"texts": rows, "predictions": texts, "errors": failed})
    else:
        print(*("" if text is None else text for text in texts), sep="\n")
    for row in failed:
        print(f"spt-jax: {row['place']}: {visible(row['error'])}", file=sys.stderr)
    if failed:
        raise FailedRows(f"{len(failed)} of {len(given)} rows failed; see the lines above")


def _answer_rows(flags: Any, argv: Sequence[str]) -> None:
    prompts, decode = read_prompt_flag(flags.prompt), read_decode_flags(flags)
    sizes = {name: flags[name] for name in ("inputs_length", "targets_length", "batch_size")}
    for name, size in {**sizes, "window": flags.window}.items():
        require(size is None or size >= 1, f"{name} is {size}, expected 1 or more")
    data = DataConfig(**{name: size for name, size in sizes.items() if size is not None})
    to_file = flags.output not in (None, "-")
    if flags.json and not to_file:
        raise ValueError("--json is given, but standard output has the rows; set --output")
    if flags.overwrite and not to_file:
        raise ValueError("--overwrite is given, but there is no --output to delete")
    if flags.text and len(prompts) > 1:
        raise ValueError(
            f"--text is given with {len(prompts)} prompts, expected one at most; "
            "give rows that name theirs by --input"
        )
    with connected(flags, "predict", argv):
        _answer_file(flags, prompts, data, decode)


def _answer_file(
    flags: Any, prompts: Mapping[str, str], data: DataConfig, decode: DecodeConfig
) -> None:
    to_file = flags.output not in (None, "-")
    if flags.text:
        source = io.BytesIO("\n".join(json.dumps({"text": text}) for text in flags.text).encode())
    elif flags.input in (None, "-"):
        if sys.stdin.isatty():
            print('rows, such as {"text": "..."}; end with Ctrl-D:', file=sys.stderr)
        source = sys.stdin.buffer
    else:
        source = Path(flags.input)
    output = Path(flags.output) if to_file else sys.stdout.buffer
    with stdout_to_stderr_if(flags.json or not to_file):
        from spt_jax.prediction.jsonl import predict_file

        result = predict_file(
            flags.model,
            prompts,
            source,
            output,
            data=data,
            decode=decode,
            seed=flags.seed,
            dtype=flags.dtype,
            param_dtype=flags.param_dtype,
            mesh=read_mesh_flags(flags),
            window=flags.window,
            scores=flags.scores,
            raw=flags.raw,
            overwrite=flags.overwrite,
        )
    if to_file:
        print_result(result, flags.json)
    if result["failed"]:
        raise FailedRows(
            f"{result['failed']} of {result['failed'] + result['answered']} rows failed; "
            f"see {result['errors'] or 'the lines above'}"
        )
