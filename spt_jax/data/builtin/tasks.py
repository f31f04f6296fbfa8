"""The built-in tasks by name: add one here, with a function that makes its rows."""

from collections.abc import Callable
from functools import partial

from spt_jax.data.builtin.argument_tasks import ANSWERS, argument_rows
from spt_jax.data.builtin.arguments import KINDS
from spt_jax.data.builtin.cache import LabeledText
from spt_jax.data.builtin.library import LIBRARIES, library_rows

BUILT_IN: dict[str, tuple[Callable[[], dict[str, list[LabeledText]]], tuple[str, ...] | None]] = {
    "library": (library_rows, tuple(LIBRARIES)),
    "type": (partial(argument_rows, "type"), tuple(KINDS)),
    "describes": (partial(argument_rows, "describes"), ANSWERS),
    "argument": (partial(argument_rows, "argument"), None),
}
"""Function that makes the rows of each task, and its label words; None for free text."""
