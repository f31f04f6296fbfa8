"""Quotes in tables of text: CSV's, which are taken away, or characters like any other.

A .tsv file has no rule of its own. The datasets of the papers write a quote as it is, pandas and
polars write CSV's quotes with tabs between them, so that a text with quotes in it is quoted and its
own quotes are doubled. Which of the two a file is can be seen, because a writer of CSV does so in
every cell that has a quote.
"""

import contextlib
import csv
import io
import re
import threading
from collections.abc import Iterator
from typing import Literal

_SPACED = re.compile(r' +"')
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LIMIT = threading.Lock()  # the longest cell is a setting of the whole process


def csv_lines(place: str, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the cells of each row, without their quotes, and the line that the row starts on.

    Raises:
        ValueError: A quote stands where CSV has none.
    """
    with _LIMIT:
        limit = csv.field_size_limit(2**31 - 1)
        try:
            lines = list(_csv_lines(place, text, delimiter))
            if any(_SPACED.match(cell) for _, cells in lines for cell in cells):
                # Some write `a, "b"`, with a space that is before the quote and not in the cell.
                with contextlib.suppress(ValueError):
                    spaced = list(_csv_lines(place, text, delimiter, spaced=True))
                    if _stripped(spaced) != _stripped(lines):
                        return spaced
            return lines
        finally:
            csv.field_size_limit(limit)


def _stripped(lines: list[tuple[int, list[str]]]) -> list[list[str]]:
    return [[cell.lstrip(" ") for cell in cells] for _, cells in lines]


def _csv_lines(
    place: str, text: str, delimiter: str, *, spaced: bool = False
) -> Iterator[tuple[int, list[str]]]:
    # Lines end at \n alone, so that csv refuses a \r in a cell without quotes.
    stream = io.StringIO(text, newline="\n")
    reader = csv.reader(stream, strict=True, delimiter=delimiter, skipinitialspace=spaced)
    number = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{place}:{number}: not CSV ({error}); expected fields with a delimiter or a line "
                'break in "quotes", and a quote inside them doubled'
            ) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield number, [cell.replace("\r", "\n") for cell in cells]
        number = reader.line_num + 1  # a quoted field may span lines


def find_quoting(place: str, text: str) -> tuple[Literal["csv", "none"], str | None]:
    """Return how the quotes of a .tsv file are to be read, and what to tell the user about it."""
    if '"' not in text:
        return "none", None
    if _is_csv(text):
        return "csv", (
            f"quotes of {place} are read as CSV's, as they were written; "
            "--task.quoting=none keeps them as text"
        )
    cells = [cell for line in text.split("\n") for cell in line.split("\t") if '"' in cell]
    whole = sum(_QUOTED.fullmatch(cell) is not None for cell in cells)
    note = f"{whole:,} cells of {place} begin and end with a quote, which is kept as text; "
    return "none", f"{note}--task.quoting=csv takes it away" if whole else None


def _is_csv(text: str) -> bool:
    try:
        rows = [cells for _, cells in csv_lines("", text, "\t")]
    except ValueError:
        return False
    widths = {len(cells) for cells in rows}
    bare = [line.split("\t") for line in text.split("\n") if line.strip()]
    if len(widths) > 1:
        return False
    if {len(cells) for cells in bare} != widths or _write(rows) == text.strip("\n").replace(
        "\r", "\n"
    ):
        return True  # a quoted cell has a tab or a line break in it, or all is as a writer has it
    quoted = [cell for cells in bare for cell in cells if '"' in cell]
    if not all(map(_QUOTED.fullmatch, quoted)):
        return False
    all_quoted = any('"' in name for name in bare[0])  # the names of columns too
    return all_quoted or all(cell == '""' or '""' in cell[1:-1] for cell in quoted)


def _write(rows: list[list[str]]) -> str:
    """Return rows as a writer of CSV that quotes what needs it has them."""
    written = io.StringIO(newline="")
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows(rows)
    return written.getvalue().strip("\n")
