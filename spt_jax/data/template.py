"""A template: what makes the input text of a row, from the fields of the row.

`<extra_id_0>` in a template is the model's sentinel, because who writes the template means it. The
same letters in the text of a row stay letters, so that no row can write a token for programs.
"""

import re
import string
from dataclasses import dataclass
from typing import NamedTuple

from spt_jax.data.records import Record

SENTINEL = re.compile(r"<extra_id_(\d+)>")


class Filled(NamedTuple):
    """The input text of a row.

    Args:
        text: The text.
        sentinels: Where in it the sentinels of the template start, in characters.
        missing: The fields of the template that the row has nothing in.
    """

    text: str
    sentinels: tuple[int, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A template.

    Args:
        parts: (text, the field that comes behind it or None) pairs.
    """

    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are named, in order."""
        return tuple(dict.fromkeys(field for _, field in self.parts if field is not None))

    @property
    def sentinels(self) -> tuple[str, ...]:
        """The sentinels that the template writes, in order."""
        return tuple(found[0] for text, _ in self.parts for found in SENTINEL.finditer(text))

    def fill(self, record: Record) -> Filled:
        """Make the input text of a row; a field that is missing gives no text.

        Raises:
            ValueError: The row has no such field, or a list or an object there.
        """
        built, sentinels, missing = "", [], []
        for text, field in self.parts:
            sentinels += [len(built) + found.start() for found in SENTINEL.finditer(text)]
            built += text
            if field is not None:
                value = record.written(field, "task.template")
                if value is None:
                    missing.append(field)
                else:
                    built += value.strip()
        blanks = len(built) - len(built.lstrip())
        return Filled(built.strip(), tuple(at - blanks for at in sentinels), tuple(missing))


def parse_template(template: str) -> Template:
    """Read a template.

    Raises:
        ValueError: It is broken, or has no field.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"task.template {template!r} is broken ({error}); expected fields in braces, such as "
            "'{sentence}', and '{{' for a brace"
        ) from None
    for _, field, form, conversion in parsed:
        if field is not None and (not field or form or conversion):
            raise ValueError(
                f"task.template {template!r} has a field without a name or with a format; "
                "expected the name of a field alone in braces, such as '{sentence}'"
            )
    if all(field is None for _, field, _, _ in parsed):
        raise ValueError(
            f"task.template {template!r} has no field, so every input would be the same; "
            "expected fields in braces, such as '{sentence}'"
        )
    return Template(tuple((text, field) for text, field, _, _ in parsed))
