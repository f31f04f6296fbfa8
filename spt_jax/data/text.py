"""Values become text here, wherever they were read: one notion of missing, one way to write each.

A file of text gives text. JSON and Parquet give numbers, dates, bytes, lists and objects too: a
scalar is written as a person would write it, and a list or an object is refused, because its
brackets and keys are no text that anybody meant. A template addresses what is inside instead, as in
`{answers[text][0]}`.
"""

import datetime
import decimal
import math
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spt_jax.errors import shorten, suggest

_ADDRESS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)")
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
NOT_A_NUMBER = ("nan", "NaN", "<NA>", "NaT")
"""What libraries write for a missing number or date into a file of text."""


def is_missing(value: Any) -> bool:
    """Return whether there is nothing to read: null, NaN, or a text without a visible character.

    White space, control characters and those of format, such as a zero-width space, are not
    visible. Tokenizers drop most of them, so that nothing would be left.
    """
    value = _python(value)
    if isinstance(value, str):
        return not any(unicodedata.category(letter) not in _INVISIBLE for letter in value)
    if isinstance(value, bytes):
        return not value.strip()
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """Return a scalar as a person would write it; halves of characters in JSON become '?'.

    Raises:
        ValueError: It is a list, an object, not finite, not UTF-8, or of a type that has no text.
    """
    if isinstance(value, np.floating) and np.isfinite(value):
        return str(value)  # as few digits as its own precision needs
    value = _python(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"bytes that are not UTF-8 ({error})") from None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, uuid.UUID, datetime.timedelta)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        raise ValueError(f"an object with the keys {_names(value)}")
    if isinstance(value, (Sequence, np.ndarray)):
        raise ValueError(f"a list of {len(value)} items")
    raise ValueError(f"{shorten(repr(value), 40)} of type {type(value).__name__}")


def address(values: Mapping[str, Any], field: str, option: str) -> Any:
    """Return what a template or an option names in a row: a column, or `column[key][0]` inside one.

    Args:
        values: The row by column. A column whose whole name is `field` comes first.
        field: The name or the address.
        option: The option that has it, for messages.

    Returns:
        The value; None where the column is null, or where a list is too short.

    Raises:
        ValueError: There is no such column or key.
    """
    if field in values:
        return values[field]
    found = _ADDRESS.fullmatch(field)
    name = found[1] if found else field
    if name not in values:
        raise ValueError(
            f"the row has no field '{name}' of {option}; its fields: "
            f"{_names(values) or 'none'}{suggest(name, values)}"
        )
    value, place = values[name], name
    for key in re.findall(r"\[([^\[\]]*)\]", found[2] if found else ""):
        value = _python(value)
        if isinstance(value, Mapping):
            if key not in value:
                raise ValueError(
                    f"field '{place}' of {option} has no key '{key}'; its keys: "
                    f"{_names(value) or 'none'}{suggest(key, value)}"
                )
            value = value[key]
        elif isinstance(value, (list, tuple, np.ndarray)) and re.fullmatch(r"-?\d+", key):
            value = value[int(key)] if -len(value) <= int(key) < len(value) else None
        elif is_missing(value):
            return None
        else:
            kind = "a list, whose items have numbers" if isinstance(value, list) else "one value"
            raise ValueError(f"field '{place}' of {option} has no [{key}], because it is {kind}")
        place = f"{place}[{key}]"
    return value


def how_to_address(field: str, value: Any) -> str:
    """Return an example of an address inside a list or an object; empty for other values."""
    value = _python(value)
    if isinstance(value, Mapping) and value:
        return f"; address one of them, such as {field}[{next(iter(value))}]"
    if isinstance(value, (list, tuple, np.ndarray)) and len(value):
        return f"; address one of them, such as {field}[0]"
    return ""


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(shorten(str(name), 30) for name in list(values)[:20])


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
