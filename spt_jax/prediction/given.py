"""The rows that `spt-jax predict RUN` is given, each with its place, or with what is wrong with it.

A line that cannot be read does not end the answers to the others. Lines are numbered from 1.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from spt_jax.config.fields import from_dict
from spt_jax.config.train import TrainConfig
from spt_jax.data.encoding import decode
from spt_jax.data.files import SUFFIXES, Reading, read_file
from spt_jax.data.places import find_files
from spt_jax.prediction.rows import load_line
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run

_BOM = b"\xef\xbb\xbf"


class Given(NamedTuple):
    """A row.

    Args:
        place: Where it stands, such as `line 3` or `rows.csv:3`.
        row: A text, or the fields of a template; the line itself if it cannot be read.
        problem: Why it cannot be read; None if it can.
    """

    place: str
    row: Any
    problem: str | None = None


def read_texts(stream: IO[bytes]) -> list[Given]:
    """Return the lines of a stream as texts; an empty line is an empty text."""
    rows = []
    for number, line in enumerate(stream, 1):
        line = line.removeprefix(_BOM) if number == 1 else line
        try:
            rows.append(Given(f"line {number}", line.rstrip(b"\r\n").decode()))
        except UnicodeDecodeError as error:
            rows.append(_unread(f"line {number}", line, f"the line is not text in UTF-8: {error}"))
    return rows


def read_json_lines(lines: Iterable[bytes], place: str = "line ") -> list[Given]:
    """Return lines of JSON as rows, without blank lines; `place` stands before their numbers."""
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(Given(f"{place}{number}", load_line(line)))
            except ValueError as error:
                rows.append(_unread(f"{place}{number}", line, str(error)))
    return rows


def read_rows(source: str, run: Path | None = None) -> list[Given]:
    """Return the rows of a file; a table or an array is read whole or not at all.

    Args:
        source: As `data.places.find_files` takes it.
        run: The run that is to answer them. Files of text have the encoding and the quotes of the
            rows that it was trained on. Without one they are read as by default.

    Raises:
        FileNotFoundError, ValueError: The folder holds no run, or see `data.files.read_table`; a
            line of JSONL that cannot be read is no error.
    """
    files = find_files(source, SUFFIXES)
    reading = Reading() if run is None else _reading_of(run)
    rows = []
    for file in files:
        if file.suffix in (".jsonl", ".ndjson"):
            lines = decode(file.read(), reading.encoding, file.place).split("\n")
            rows += read_json_lines((line.encode() for line in lines), f"{file.place}:")
        else:
            rows += [Given(record.place, record.values) for record in read_file(file, reading)[0]]
    return rows


def _reading_of(run: Path) -> Reading:
    with open_run(run) as place:
        task = from_dict(TrainConfig, RunFolder(place).read_config(), saved=True).task
    return Reading(task.encoding, task.quoting)


def _unread(place: str, line: bytes, problem: str) -> Given:
    return Given(place, line.decode(errors="replace").strip(), problem)
