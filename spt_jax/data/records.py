"""A row of a dataset, whose columns are asked for by the type that they should have.

TensorFlow Datasets gives bytes and numpy scalars, the Hub and Parquet give Python's own types, and
a file may hold '1', true or 'entailment' for one and the same label. A format (`formats.py`) asks
a record and sees none of that; a column that is missing or of another type is a ValueError that
names the row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spt_jax.data.example import HIDDEN
from spt_jax.data.text import address, as_text, how_to_address, is_missing
from spt_jax.errors import shorten, suggest


@dataclass(frozen=True)
class Record:
    """One row.

    Args:
        values: By column.
        place: What to call the row in a message, such as `rows.jsonl:3`.
    """

    values: Mapping[str, Any]
    place: str

    def text(self, column: str) -> str:
        """A column of text, as it is."""
        return self._as_text(self._value(column), column)

    def texts(self, column: str) -> list[str]:
        """A column that is a list of texts."""
        value = self._value(column)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise self._wrong(column, "a list of texts")
        return [self._as_text(item, column) for item in value]

    def written(self, field: str, option: str) -> str | None:
        """Return what a template or an option names, as text whatever its type is; None if missing.

        Args:
            field: A column, or an address inside one such as `answers[text][0]`.
            option: The option that names it, for messages.

        Raises:
            ValueError: There is no such field, or it holds no text.
        """
        try:
            value = address(self.values, field, option)
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from None
        if is_missing(value):
            return None
        try:
            return as_text(value)
        except ValueError as error:
            raise ValueError(
                f"{self.place}: field '{field}' of {option} is {error}, expected one text or "
                f"number{how_to_address(field, value)}"
            ) from None

    def integer(self, column: str) -> int:
        """A column that is a whole number, or reads as one."""
        value = _python(self._value(column))
        try:
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value)
        except (TypeError, ValueError):
            raise self._wrong(column, "a whole number") from None

    def number(self, column: str) -> float:
        """A column that is a finite number, or reads as one."""
        try:
            value = float(_python(self._value(column)))
        except (TypeError, ValueError):
            raise self._wrong(column, "a number") from None
        if not np.isfinite(value):
            raise self._wrong(column, "a finite number")
        return value

    def label(self, column: str, words: Sequence[str]) -> int:
        """A label as the index of its word, or `HIDDEN`.

        It may be that index, -1, true or false, or the word itself.
        """
        value = _python(self._value(column))
        if isinstance(value, str) and value in words:
            return list(words).index(value)
        try:
            index = self.integer(column)
        except ValueError:
            index = len(words)
        if not HIDDEN <= index < len(words):
            raise self._wrong(column, f"0 to {len(words) - 1}, -1, or one of {', '.join(words)}")
        return index

    def inner(self, column: str) -> "Record":
        """A column that has columns itself."""
        value = self._value(column)
        if not isinstance(value, Mapping):
            raise self._wrong(column, "an object with columns of its own")
        return Record(value, f"{self.place}: {column}")

    def _value(self, column: str) -> Any:
        if self.values.get(column) is None:
            known = [name for name, value in self.values.items() if value is not None]
            shown = ", ".join(shorten(name, 30) for name in known[:20]) or "none"
            raise ValueError(
                f"{self.place}: the row has no column '{column}'; it has: {shown}"
                f"{suggest(column, known)}"
            )
        return self.values[column]

    def _as_text(self, value: Any, column: str) -> str:
        try:
            value = _python(value)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.place}: column '{column}' is not UTF-8 ({error})") from None
        if not isinstance(value, str):
            raise self._wrong(column, "text")
        return value.encode("utf-8", "replace").decode()  # JSON can hold halves of characters

    def _wrong(self, column: str, expected: str) -> ValueError:
        given = shorten(repr(self.values[column]))
        return ValueError(f"{self.place}: column '{column}' is {given}, expected {expected}")


def _python(value: Any) -> Any:
    """bytes as str and a numpy scalar as Python's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value
