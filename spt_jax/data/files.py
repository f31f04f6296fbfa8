"""Rows of JSONL, JSON arrays, CSV, TSV and Parquet, each with the line that it stands on.

A file is read as a whole and checked as a whole, so that a broken line 40,000 is found before
training starts, not during it. A record keeps the types of the file; `data/text.py` turns them into
text. Files may be compressed, in shards and in a bucket (`data/places.py`).
"""

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from spt_jax.data.encoding import decode
from spt_jax.data.places import File, find_files, most_unpacked
from spt_jax.data.quoting import csv_lines, find_quoting
from spt_jax.data.records import Record
from spt_jax.errors import shorten

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


class Reading(NamedTuple):
    """How files of text are read.

    Args:
        encoding: Of files without a mark (BOM).
        quoting: Whether `"quotes"` of a .csv or .tsv file are taken away (`csv`) or are part of the
            text (`none`). `auto`: as CSV in .csv files, and in .tsv files that were written so.
    """

    encoding: str = "utf-8"
    quoting: Literal["auto", "csv", "none"] = "auto"


class Table(NamedTuple):
    """The rows of one or several files.

    Args:
        records: In order.
        notes: What was found: shards, quotes.
    """

    records: list[Record]
    notes: tuple[str, ...]


Line = tuple[int, dict[str, Any]]
"""Its number, from 1, and the values by column."""


def read_table(source: str, reading: Reading = Reading()) -> Table:  # noqa: B008  it is immutable
    """Read all rows of a file, a folder of shards, a pattern or an address, in order.

    Args:
        source: As `data.places.find_files` takes it. A .jsonl file has an object per line, a .json
            file an array of them, a .csv or .tsv file a first line that names the columns.
        reading: How files of text are read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file has another suffix or encoding, a line that cannot be read (named as
            path:line), columns without a name or with the same one, or no rows.
        PermissionError, ConnectionError: The bucket cannot be read.
    """
    files = find_files(source, SUFFIXES)
    records, notes = [], []
    for file in files:
        found, note = read_file(file, reading)
        records += found
        notes += [note] if note else []
    if len(files) > 1:
        notes = notes[:1]  # one speaks for all shards
        notes.insert(0, f"{source} has {len(files)} files, {len(records):,} rows")
    return Table(records, tuple(notes))


def read_records(source: str, reading: Reading = Reading()) -> list[Record]:  # noqa: B008
    """Read the rows alone; raises as `read_table`."""
    return read_table(source, reading).records


def read_file(
    file: File,
    reading: Reading = Reading(),  # noqa: B008
    *,
    kind: str | None = None,
    columns: tuple[str, ...] = (),
    ragged: bool = False,
) -> tuple[list[Record], str | None]:
    """Read one file: its rows, and what is to be said of its quotes.

    Args:
        file: The file.
        reading: How text is read.
        kind: The suffix that it should have, where it has another.
        columns: The names of the columns, should the first line of a table have none of them.
        ragged: Whether a row of a table may lack its last columns, which are None then, or have
            more than there are.

    Raises:
        ValueError: See `read_table`.
    """
    note, kind = None, kind or file.suffix
    if kind not in SUFFIXES:
        raise ValueError(
            f"'{file.place}' has the suffix '{file.suffix}', expected a file in "
            f"{', '.join(SUFFIXES)}, or those as .gz, .bz2 or .xz"
        )
    if kind == ".parquet":
        lines = _parquet_rows(file)
    else:
        table = kind in (".csv", ".tsv")
        text = decode(file.read(), reading.encoding, file.place, table=table)
        if kind == ".json":
            lines = list(_json_rows(file.place, text))
        elif kind in (".jsonl", ".ndjson"):
            lines = list(_jsonl_rows(file.place, text))
        else:
            delimiter = "," if kind == ".csv" else "\t"
            quoting = reading.quoting
            if quoting == "auto":
                quoting, note = ("csv", None) if kind == ".csv" else find_quoting(file.place, text)
            split = csv_lines if quoting == "csv" else _bare_lines
            rows = iter(split(file.place, text, delimiter))
            lines = list(_table_rows(file.place, rows, columns, ragged, delimiter))
    if not lines:
        shapes = {".parquet": "a table with rows", ".json": "an array of objects"}
        shapes |= dict.fromkeys((".csv", ".tsv"), "a header line and rows below")
        shape = shapes.get(kind, "an object per line")
        raise ValueError(f"file '{file.place}' has no rows; expected {shape}")
    return [Record(values, f"{file.place}:{line}") for line, values in lines], note


def _parquet_rows(file: File) -> list[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        data = file.read()
        described = pyarrow.parquet.read_metadata(io.BytesIO(data))
        groups = (described.row_group(n).total_byte_size for n in range(described.num_row_groups))
        size = max(described.num_rows * described.num_columns, sum(groups))
        if size > most_unpacked(len(data)):
            raise ValueError(f"it has {len(data):,} bytes and states {size:,} of values")
        names = described.schema.to_arrow_schema().names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two columns have the name '{shorten(twice, 30)}'")
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        columns = {name: _values(table[name]) for name in table.column_names}
        rows = [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"file '{file.place}' cannot be read as Parquet ({shorten(str(error))}); "
            "expected the file as it was written, not cut short"
        ) from None
    return list(enumerate(rows, 1))


def _values(column: Any) -> list[Any]:
    """Return the values of a column, which Python writes as a person would.

    float32 goes through its own digits to float64, so that 0.1 does not become 0.10000000149011612.
    Nanoseconds and years that Python's dates do not have become microseconds or else text.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_float16(kind):
        return [value if value is None else np.float16(value) for value in column.to_pylist()]
    if "float" in str(kind):
        for wanted in (pa.string(), pa.float64()):
            column = column.cast(_with_leaves(kind, pa.float32(), wanted))
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz))
        elif pa.types.is_time(kind) and kind.unit == "ns":
            column = column.cast(pa.time64("us"))
        return column.to_pylist()
    except (OverflowError, ValueError):  # also what Arrow raises where nanoseconds would be lost
        return column.cast(pa.string()).to_pylist()


def _with_leaves(kind: Any, old: Any, new: Any) -> Any:
    """Return a type of Arrow with one type in it, at any depth, replaced by another.

    A list or a dictionary of any layout becomes the usual one of the same values.
    """
    import pyarrow as pa

    if kind == old:
        return new
    if pa.types.is_dictionary(kind):
        return _with_leaves(kind.value_type, old, new)
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _with_leaves(kind.item_type, old, new))
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return pa.struct([(f.name, _with_leaves(f.type, old, new)) for f in fields])
    if pa.types.is_nested(kind):
        return pa.large_list(_with_leaves(kind.value_type, old, new))
    return kind


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; a key that occurs twice is an error, as a column is in a table."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{shorten(twice, 30)}' occurs twice")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=unique_keys)


def _jsonl_rows(place: str, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = _JSON.decode(line.removeprefix("\ufeff"))  # of files put one behind another
            problem = None if isinstance(fields, dict) else "no object"
        except (ValueError, RecursionError) as error:
            fields, problem = {}, f"not JSON ({error})"
        if problem is not None:
            raise ValueError(
                f"{place}:{number}: {problem}: {shorten(line)!r}; expected one object per line, "
                'such as {"text": "...", "label": "..."}'
            )
        yield number, fields


def _json_rows(place: str, text: str) -> Iterator[Line]:
    """Read an array of objects; or one object; or objects one a line, which some call .json too."""
    line, seen = 1, 0
    at = _skip(text, 0, " \n\t")
    if text[at : at + 1] != "[":
        try:
            whole = _JSON.decode(text)
        except (ValueError, RecursionError):
            whole = None
        yield from _jsonl_rows(place, text) if not isinstance(whole, dict) else [(1, whole)]
        return
    at = _skip(text, at + 1, " \n\t")
    while text[at : at + 1] != "]":
        line, seen = line + text.count("\n", seen, at), at
        try:
            fields, at = _JSON.raw_decode(text, at)
            problem = None if isinstance(fields, dict) else "no object"
            at = _skip(text, at, " \n\t")
            if problem is None and text[at : at + 1] not in (",", "]"):
                problem = "no comma behind the object"
        except (ValueError, RecursionError) as error:
            fields, problem = {}, f"not JSON ({error})"
        if problem is not None:
            raise ValueError(
                f"{place}:{line}: {problem}: {shorten(text[seen : seen + 80])!r}; expected an "
                'array of objects, such as [{"text": "...", "label": "..."}, ...]'
            )
        yield line, fields
        at = _skip(text, at + (text[at] == ","), " \n\t")
    end = _skip(text, at + 1, " \n\t")
    if rest := text[end : end + 80]:
        line += text.count("\n", seen, end)
        raise ValueError(
            f"{place}:{line}: {shorten(rest)!r} stands behind the end of the array; expected one "
            "array of objects in the file"
        )


def _skip(text: str, at: int, blanks: str) -> int:
    while text[at : at + 1] and text[at] in blanks:
        at += 1
    return at


def _bare_lines(place: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Split lines at every delimiter: a quote is a character like any other."""
    for number, line in enumerate(text.split("\n"), 1):
        if "\r" in line:
            raise ValueError(
                f"{place}:{number}: a carriage return stands inside a line; expected one kind of "
                'line break in the file, and a cell with a line break in "quotes"'
            )
        if line.strip():
            yield number, line.split(delimiter)


def _table_rows(
    place: str,
    table: Iterator[tuple[int, list[str]]],
    columns: tuple[str, ...],
    ragged: bool,
    delimiter: str,
) -> Iterator[Line]:
    first = next(table, (1, []))
    header = [name.strip() for name in first[1]]
    if columns and not {*columns} & {*header}:
        header, table = list(columns), itertools.chain([first], table)
    joined = header[0] if len(header) == 1 else ""
    separators = [mark for mark in "\t;,|" if mark != delimiter and mark in joined]
    if separators:
        raise ValueError(
            f"{place}:1: the first line is one column, {shorten(joined)!r}, and has "
            f"{separators[0]!r} in it; expected {'commas' if delimiter == ',' else 'tabs'} between "
            "the columns, so save it as .csv with commas, or as .tsv with tabs"
        )
    # The index that DataFrame.to_csv() writes is a first column without a name; it is left out.
    unnamed = next((n for n, name in enumerate(header) if name), len(header))
    for name in header[unnamed:]:
        if not name or header.count(name) > 1:
            raise ValueError(
                f"{place}:1: the column name '{shorten(name)}' is empty or occurs twice; "
                "expected a first line with a different name for each column"
            )
    for number, cells in table:
        if len(cells) != len(header) and not ragged:
            shown = ", ".join(shorten(name, 30) for name in header[:20])
            raise ValueError(
                f"{place}:{number}: {len(cells)} columns, expected {len(header)} as in the first "
                f"line: {shown}"
            )
        cells = [*cells, *[None] * (len(header) - len(cells))]
        yield number, dict(zip(header[unnamed:], cells[unnamed:], strict=False))
