"""Rows of a user's .jsonl, .csv, .tsv or .parquet file, each with the line that it stands on.

A file is read as a whole and checked as a whole, so that a broken line 40,000 is found before
training starts, not during it. Every value of a `Row` is text: what JSON calls 1 or true is '1' or
'true', and null is no field at all; a `Record` keeps the types of the file. A .csv file has the
usual quotes; in a .tsv file a quote is a character like any other, and a tab always ends the field.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spt_jax.data.records import Record
from spt_jax.errors import shorten, suggest

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


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
    """All rows of a file as text, in order; blank lines are skipped.

    Args:
        path: A .jsonl file with an object per line, a .csv or .tsv file whose first line names
            the columns, in UTF-8, or a .parquet file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another suffix or encoding, a line that cannot be read (named as
            path:line), columns without a name or with the same one, or no rows.
    """
    return [
        Row({name: as_text(v) for name, v in values.items() if v is not None}, line)
        for line, values in _read(Path(path))
    ]


def read_records(path: str | Path) -> list[Record]:
    """All rows of a file with the types that it has, in order; raises as `read_rows`."""
    return [Record(values, f"{path}:{line}") for line, values in _read(Path(path))]


def _read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, values by column) of every row."""
    if not path.exists():
        raise FileNotFoundError(f"file '{path}' does not exist{_similar_file(path)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not path.is_file():
        given = f"the suffix '{path.suffix}'" if path.is_file() else "a folder"
        raise ValueError(f"'{path}' is {given}, expected a file in {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix == ".jsonl":
        rows = list(_jsonl_rows(path, _decode(path)))
    else:
        text = _decode(path)
        table = _csv_lines(path, text) if suffix == ".csv" else _tsv_lines(text)
        rows = list(_table_rows(path, table))
    if not rows:
        shape = "an object per line" if suffix == ".jsonl" else "a header line and rows below"
        shape = "a table with rows" if suffix == ".parquet" else shape
        raise ValueError(f"file '{path}' has no rows; expected {shape}")
    return rows


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor does its folder (looked from {Path.cwd()})"
    names = [other.name for other in path.parent.iterdir() if other.suffix in SUFFIXES]
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


def _parquet_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"file '{path}' cannot be read as Parquet ({shorten(str(error))}); "
            "expected the file as it was written, not cut short"
        ) from None
    return list(enumerate(rows, 1))


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
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
        yield number, fields


def as_text(value: object) -> str:
    """Return a value of a row as text: strings as they are, others as JSON writes them."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
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


def _table_rows(
    path: Path, table: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict[str, Any]]]:
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
        yield number, dict(zip(header, cells, strict=True))
