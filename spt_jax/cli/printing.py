"""What a command prints: one JSON object, aligned `name  value` lines, or a table; and warnings.

The JSON is strict: a value that is not finite is null, so that every JSON reader takes the line.
Control characters are escaped, because names and metadata come from files of others.
"""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spt_jax.errors import visible


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """While it lasts, a warning of the library's logger is one line on stderr, and only there."""
    logger, handler = logging.getLogger("spt_jax"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("spt-jax: warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def hide_orbax_log() -> None:
    """Hide Orbax's log: its progress, and tracebacks of errors that a command reports in one line.

    Orbax logs through absl. The import comes first, because absl sets the class of its logger then.
    """
    from absl import logging as absl_logging

    absl_logging.get_absl_logger().addFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/checkpoint/" not in record.pathname


def print_json(result: Mapping[str, Any]) -> None:
    """Prints `result` as one line of JSON; paths as text, scalars of numpy as numbers."""
    print(visible(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False)))


def print_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints `result` as JSON, or as one aligned line per value, `outer.inner` where nested."""
    if as_json:
        return print_json(result)
    rows = [(visible(name), visible(text)) for name, text in _rows("", _plain(result))]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints aligned columns, folded to the width of a terminal and never in a pipe or file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _rows(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _rows(f"{name}[{number}]", inner)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
