"""Rows of a user's .jsonl, .csv or .tsv file, each with the line that it stands on.

A file is read as a whole and checked as a whole, so that a broken line 40,000 is found before
training starts, not during it. Every value is text: what JSON calls 1 or true is '1' or 'true', and
null is no field at all. A .csv file has the usual quotes; in a .tsv file a quote is a character
like any other, and a tab always ends the field.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spt_jax.errors import suggest

_SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Args:
        fields: Values by column or key, as text.
        line: Number of the line that the row starts on, from 1.
    """

    fields: dict[str, str]
    line: int


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file, in order; blank lines are skipped.

    Args:
        path: A .jsonl file with an object per line, or a .csv or .tsv file whose first line names
            the columns. UTF-8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another suffix or encoding, a line that cannot be read (named as
            path:line), columns without a name or with the same one, or no rows.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"file '{path}' does not exist{_similar_file(path)}")
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        given = f"the suffix '{path.suffix}'" if path.is_file() else "a folder"
        raise ValueError(f"'{path}' is {given}, expected a file in {', '.join(_SUFFIXES)}")
    text = _decode(path)
    if path.suffix.lower() == ".jsonl":
        rows = list(_jsonl_rows(path, text))
    else:
        table = _csv_lines(path, text) if path.suffix.lower() == ".csv" else _tsv_lines(text)
        rows = list(_table_rows(path, table))
    if not rows:
        shape = (
            "an object per line"
            if path.suffix.lower() == ".jsonl"
            else "a header line and rows below"
        )
        raise ValueError(f"file '{path}' has no rows; expected {shape}")
    return rows


def shorten(text: str, length: int = 60) -> str:
    """A value for an error message: one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor does its folder (looked from {Path.cwd()})"
    names = [other.name for other in path.parent.iterdir() if other.suffix in _SUFFIXES]
    return suggest(path.name, names) or f" (looked from {Path.cwd()})"


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"file '{path}' cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; "
            f"convert the file, for example with: iconv -f LATIN1 -t UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            problem = None if isinstance(fields, dict) else "no object"
        except (ValueError, RecursionError) as error:
            fields, problem = {}, f"not JSON ({error})"
        if problem is not None:
            raise ValueError(
                f"{path}:{number}: {problem}: {shorten(line)!r}; expected one object per line, "
                'such as {"text": "...", "label": "..."}'
            )
        yield Row({name: _as_text(v) for name, v in fields.items() if v is not None}, number)


def _as_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters


def _tsv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.split("\t")


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}:{number}: not CSV ({error}); expected fields with a comma or a line "
                'break in "quotes", and a quote inside them doubled'
            ) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield number, cells
        number = reader.line_num + 1  # a quoted field may span lines


def _table_rows(path: Path, table: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    _, header = next(table, (1, []))
    header = [name.strip() for name in header]
    for name in header:
        if not name or header.count(name) > 1:
            raise ValueError(
                f"{path}:1: the column name '{shorten(name)}' is empty or occurs twice; "
                "expected a first line with a different name for each column"
            )
    for number, cells in table:
        if len(cells) != len(header):
            columns = ", ".join(shorten(name, 30) for name in header[:20])
            raise ValueError(
                f"{path}:{number}: {len(cells)} columns, expected {len(header)} as in the first "
                f"line: {columns}"
            )
        yield Row(dict(zip(header, cells, strict=True)), number)
