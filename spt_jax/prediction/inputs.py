"""Texts and rows of fields become the inputs that a prompt was trained on.

The prompt of a run on a user's file has only read filled templates, such as 'review: {sentence}',
so what it answers goes through the same template. Runs of built-in tasks and of tasks of the papers
have no template: the task itself writes their inputs, and a text has to be written as
`spt-jax data show NAME` prints it.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spt_jax.data.example import Example
from spt_jax.data.records import Record
from spt_jax.data.template import Template, parse_template
from spt_jax.data.text import address, is_missing
from spt_jax.errors import require, shorten, suggest

EXAMPLE = '{"prompt": "name", "text": "..."}'
"""A row without a template."""


@dataclass(frozen=True)
class InputForm:
    """How the rows of a prompt become inputs, and what its targets begin with.

    Args:
        template: `task.template` of its run; None if rows are finished inputs.
        missing: `task.missing` of its run. With `empty`, a field with nothing in it (empty, null or
            NaN) is an empty text. Otherwise the row is refused, as training refused it or left it
            out.
        sentinel_targets: `data.sentinel_targets` of its run: whether `<extra_id_0>` is in front of
            its targets, and so of label words that are scored.
    """

    template: str | None = None
    missing: str = "error"
    sentinel_targets: bool = False

    @functools.cached_property
    def _parsed(self) -> Template | None:
        return None if self.template is None else parse_template(self.template)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the template, in order; none without a template."""
        return () if self._parsed is None else self._parsed.fields

    def fill(self, row: str | Mapping[str, Any]) -> str | Example:
        """Return the input of a row: its text, or an example if the template has sentinels.

        Args:
            row: The fields of the template by name. Where the template has one field, or there is
                no template, a text, or a mapping with the field `text`.

        Raises:
            ValueError: A field is missing or empty, or is no text or number.
        """
        fields = self.fields
        if isinstance(row, Mapping):
            if fields and (_has(row, fields) or (len(fields) > 1 and "text" not in row)):
                return self._fill(row)
            if "text" not in row:
                lacks = f"'text', expected {EXAMPLE}"
                if fields:
                    lacks = f"'{fields[0]}' of the template {self.template!r}, nor 'text'"
                guess = suggest(fields[0] if fields else "text", map(str, row))
                raise ValueError(f"the row has no field {lacks}{guess}")
            row = row["text"]
        if not isinstance(row, str):
            raise ValueError(f"text is {_show(row)}, expected a string")
        _require_whole(row, "text")
        if len(fields) > 1:
            raise ValueError(
                f"a text is given, but the template {self.template!r} has the fields "
                f"{', '.join(fields)}; give rows with these fields, or finished inputs as raw"
            )
        return self._fill({fields[0]: row}) if fields else row

    def _fill(self, row: Mapping[str, Any]) -> str | Example:
        for field in self.fields:
            _require_value(row, field, self.missing)
        assert self._parsed is not None
        text, sentinels, _ = self._parsed.fill(Record(row, "the row"))
        return Example(text, "", sentinels=sentinels) if sentinels else text


def form_of(metadata: Mapping[str, str]) -> InputForm:
    """Return the form of the rows of a stored prompt, by what is kept with it.

    A prompt that keeps nothing of sentinels was trained without them.

    Raises:
        ValueError: `missing` or `sentinel_targets` is none of its values.
    """
    missing = metadata.get("missing", InputForm.missing)
    require(
        missing in ("error", "skip", "empty"),
        f"the prompt keeps missing {shorten(missing)!r}, expected error, skip or empty; "
        "get another copy of it",
    )
    sentinel = metadata.get("sentinel_targets", "false")
    require(
        sentinel in ("true", "false"),
        f"the prompt keeps sentinel_targets {shorten(sentinel)!r}, expected true or false; "
        "get another copy of it",
    )
    return InputForm(metadata.get("template"), missing, sentinel == "true")


def list_rows(texts: Iterable[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """Return the rows that a caller gave: a list, an array or a generator.

    Raises:
        TypeError: One text or one row is given in place of several, or something else.
        ValueError: A row is no text and no mapping; the message has its number, from 0.
    """
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(
            f"texts is {shorten(repr(texts), 40)} of type {type(texts).__name__}, expected a list "
            "of texts or rows; put it into a list to have it answered alone"
        )
    rows = list(texts)
    for number, row in enumerate(rows):
        if not isinstance(row, (str, Mapping)):
            raise ValueError(
                f"row {number} is {shorten(repr(row), 40)} of type {type(row).__name__}, expected "
                "a text or a mapping of fields"
            )
    return rows


def _has(row: Mapping[str, Any], fields: Iterable[str]) -> bool:
    """Return whether a row has a field of a template, or the column that a field is inside of."""
    return any(field in row or field.partition("[")[0] in row for field in fields)


def _require_value(row: Mapping[str, Any], field: str, missing: str) -> None:
    """Raise ValueError if a row has half of a character in a field, or nothing that is allowed."""
    value = address(row, field, "the template")
    if isinstance(value, str):
        _require_whole(value, f"field '{field}'")
    if missing != "empty" and is_missing(value):
        raise ValueError(
            f"field '{field}' is {_show(value)}, expected a text or a number, because task.missing "
            f"of the run is '{missing}'"
        )


def _require_whole(text: str, name: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} has half of a surrogate pair, expected whole characters")


def _show(value: Any) -> str:
    return shorten(json.dumps(value, default=repr), 40)
