"""The rows of `spt-jax predict`: a line of JSON in, the same line with its answers out.

A line is written back as it was, with its spaces, numbers and escapes; the new fields stand at its
end. A line that is no such row gets an error of its own and does not stop the others.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, NoReturn, Protocol

from spt_jax.data.example import Example
from spt_jax.data.files import unique_keys
from spt_jax.errors import shorten
from spt_jax.prediction.inputs import EXAMPLE, InputForm

ADDED = ("output", "outputs", "scores")
"""The fields that an answered row has in addition."""

PromptAndText = tuple[str | None, str | Example]
"""The name of a prompt, or None for no prompt, and what `InputForm.fill` gives."""

_BOM = b"\xef\xbb\xbf"


class RowPredictor(Protocol):
    """The part of `prediction.predictor.Predictor` that is used here, which needs no jax."""

    def problems(self, rows: Sequence[PromptAndText]) -> Sequence[str | None]: ...
    def predict(
        self, rows: Sequence[PromptAndText], row_numbers: Sequence[int] | None = None
    ) -> Sequence[Any]: ...


class Window(NamedTuple):
    """Answers to consecutive lines of the input.

    Args:
        answered: Lines for the output.
        failed: Lines for the errors file.
        lines: Number of lines read, blank ones included.
        nbytes: Number of bytes read.
    """

    answered: list[bytes]
    failed: list[bytes]
    lines: int
    nbytes: int


def answer_lines(
    lines: Iterable[bytes],
    predictor: RowPredictor,
    prompts: Mapping[str, InputForm],
    *,
    first: int,
    window: int,
    several: bool,
    scores: bool,
) -> Iterator[Window]:
    """Answer lines in order, `window` of them at a time; no more are held in memory.

    The result of a window depends on nothing but its lines and their numbers.

    Args:
        lines: Lines of a JSONL file. Blank ones are left out.
        predictor: Answers the rows of a window.
        prompts: Form of the inputs of each prompt, by its name.
        first: Number of the first line, from 1; a row that samples draws by its number.
        window: Lines of a window.
        several: Whether to add `outputs`, all answers of a row.
        scores: Whether to add `scores`, one for each answer.
    """
    lines = iter(lines)
    while chunk := list(islice(lines, window)):
        rows, problems = _read(dict(enumerate(chunk, start=first)), predictor, prompts)
        answers = predictor.predict(list(rows.values()), list(rows)) if rows else ()
        answered = [
            _format_row(chunk[number - first], answer, several, scores)
            for number, answer in zip(rows, answers, strict=True)
        ]
        failed = [
            _format_error(number, chunk[number - first], problems[number])
            for number in sorted(problems)
        ]
        yield Window(answered, failed, len(chunk), sum(map(len, chunk)))
        first += len(chunk)


def _read(
    lines: Mapping[int, bytes], predictor: RowPredictor, prompts: Mapping[str, InputForm]
) -> tuple[dict[int, PromptAndText], dict[int, str]]:
    """Return the rows that can be answered, and what is wrong with the others, by line number."""
    rows, problems = {}, {}
    for number, line in lines.items():
        try:
            if line.strip():
                rows[number] = parse_row(line, prompts)
        except ValueError as error:
            problems[number] = str(error)
    for number, problem in zip(list(rows), predictor.problems(list(rows.values())), strict=True):
        if problem:
            problems[number] = problem
            del rows[number]
    return rows, problems


def parse_row(line: bytes, prompts: Mapping[str, InputForm]) -> PromptAndText:
    """Return the prompt and the input text of a line.

    A row without the field `prompt` gets the only prompt if there are not several; null is no
    prompt.

    Args:
        line: Line of a JSONL file.
        prompts: Form of the inputs of each prompt, by its name. A row without a prompt has a
            finished input.

    Raises:
        ValueError: The line is no JSON object of that form.
    """
    row = load_line(line)
    if not isinstance(row, Mapping):
        raise ValueError(f"the line is {_show(row)}, expected a JSON object such as {EXAMPLE}")
    if taken := [name for name in ADDED if name in row]:
        raise ValueError(f"the row has a field '{taken[0]}' already; rename it")
    prompt = row.get("prompt")
    if "prompt" not in row:
        if len(prompts) > 1:
            raise ValueError(
                f"the row has no field 'prompt' and {len(prompts)} prompts are given; "
                f"set it to one of {', '.join(prompts)}, or to null for no prompt"
            )
        prompt = next(iter(prompts), None)
    elif prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt is {_show(prompt)}, expected a name, or null for no prompt")
    if prompt is None:
        return None, InputForm().fill(row)
    # `RowPredictor.problems` names an unknown prompt.
    return prompt, prompts[prompt].fill(row) if prompt in prompts else ""


def load_line(line: bytes) -> Any:
    """Return the value of a line of JSON.

    Raises:
        ValueError: It is not JSON in UTF-8, has a key twice, or has NaN or Infinity.
    """
    try:
        text = _text(line)
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not text in UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the line is not JSON: {error.msg} at character {error.pos + 1}; expected an object "
            f"such as {EXAMPLE}"
        ) from None
    except RecursionError:
        raise ValueError("the line is nested too deeply to be read as JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the line is not JSON: it has {name}, expected a finite number or null")


def _format_row(line: bytes, answers: Any, several: bool, scores: bool) -> bytes:
    added: dict[str, Any] = {"output": next(iter(answers.texts), None)}
    if several:
        added["outputs"] = list(answers.texts)
    if scores:
        added["scores"] = [round(x, 6) if math.isfinite(x) else None for x in answers.scores]
    tail = json.dumps(added, ensure_ascii=False, allow_nan=False)
    return f"{_text(line)[:-1].rstrip()}, {tail[1:]}\n".encode()


def _format_error(number: int, line: bytes, message: str) -> bytes:
    row = line.decode(errors="replace").strip()
    return (json.dumps({"line": number, "error": message, "row": row}) + "\n").encode()


def _text(line: bytes) -> str:
    return line.removeprefix(_BOM).decode().strip()


def _show(value: Any) -> str:
    return shorten(json.dumps(value), 40)
