"""Show the progress of a long run: a bar on a terminal, or a line every 10 seconds elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import ClassVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from spt_jax.distributed.main_process import is_main
from spt_jax.pytree import count_params, named_leaves, nbytes
from spt_jax.typing import PyTree

PLAIN_SECONDS = 10.0
"""Least time between two lines without a terminal."""


class Bar:
    """Progress of a run, on the stderr of process 0. A context manager.

    While a `ManyBar` is shown, this bar moves that one and shows nothing itself.

    Args:
        title: Title of the bar.
        total: Number of all steps, or None if it is unknown.
        done: Steps that a resumed run has done before.
    """

    outer: ClassVar["ManyBar | None"] = None
    """The bar of many runs that is shown at the moment."""

    def __init__(self, title: str, total: int | None, done: int = 0):
        self._title, self._total, self._done = title, total, done
        self._started, self._first, self._spoken = time.monotonic(), done, 0.0
        self._fields, self._printed = "", ""
        console = Console(stderr=True)
        self._silent, self._bar = not is_main() or Bar.outer is not None, None
        if Bar.outer is not None:
            Bar.outer.resume_part(done, total)
        if console.is_terminal and not self._silent:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._id = self._bar.add_task(title, total=total, completed=done, shown="")

    def __enter__(self) -> "Bar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar:
            self._bar.stop()
        elif self._done > self._first and self._printed != self._numbers():
            self._print_line()

    def update(self, done: int, fields: Mapping[str, float] | None = None) -> None:
        """Show that `done` steps are done. `fields` replaces the numbers beside the bar."""
        self._done = done
        if fields is not None:
            self._fields = "  ".join(f"{name} {value:.4g}" for name, value in fields.items())
        if Bar.outer is not None and Bar.outer is not self:
            Bar.outer.move_part(done, self._total, fields)
        elif self._bar:
            self._bar.update(self._id, completed=done, shown=self._fields)
        elif time.monotonic() - self._spoken >= PLAIN_SECONDS:
            self._print_line()

    def _numbers(self) -> str:
        done = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        return f"{self._title} {done}  {self._fields}"

    def _print_line(self) -> None:
        if self._silent:
            return
        self._spoken, self._printed = time.monotonic(), self._numbers()
        seconds = self._spoken - self._started
        rate, left = (self._done - self._first) / seconds if seconds > 0 else 0.0, ""
        if self._total is not None and rate:
            left = f", {(self._total - self._done) / rate:.0f} s left"
        say(f"{self._printed}  {seconds:.0f} s{left}")


class ManyBar(Bar):
    """Progress of many runs, which are trained one part after another. A context manager.

    The steps of all runs are its total. A part is a run, or several that share a program; the `Bar`
    of the part moves this one in proportion to the part's steps.

    Args:
        title: Title of the bar.
        total: Steps of all runs.
        done: Steps of the runs that are over.
    """

    def __init__(self, title: str, total: int, done: int = 0):
        super().__init__(title, total, done)
        self._before, self._steps = done, 0

    def __enter__(self) -> "ManyBar":
        Bar.outer = self
        super().__enter__()
        return self

    def __exit__(self, *exc_info) -> None:
        Bar.outer = None
        super().__exit__(*exc_info)

    def begin_part(self, before: int, steps: int, total: int) -> None:
        """Begin a part.

        Args:
            before: Steps that all other runs have done.
            steps: Steps of all runs of the part.
            total: Steps of all runs, which falls when a run ends early.
        """
        self._before, self._steps, self._total = before, steps, total
        if self._bar:
            self._bar.update(self._id, total=total)
        self._skip_to(before)

    def resume_part(self, done: int, total: int | None) -> None:
        """Begin the bar of the part, of which `done` steps were done before."""
        self._skip_to(self._scale(done, total))

    def move_part(self, done: int, total: int | None, fields: Mapping[str, float] | None) -> None:
        """Show that `done` steps of the part's bar are done."""
        self.update(self._scale(done, total), fields)

    def _scale(self, done: int, total: int | None) -> int:
        return self._before + (round(self._steps * done / total) if total else 0)

    def _skip_to(self, done: int) -> None:
        """Show steps as done that took no time now, so that they do not count for the time left."""
        self._first += done - self._done
        self._done = done
        if self._bar:
            self._bar.update(self._id, completed=done)


def say(line: str) -> None:
    """Print a line to stderr, above a running bar."""
    print(line, file=sys.stderr, flush=True)


def print_split(trained: PyTree, frozen: PyTree) -> None:
    """Print a table of the trained and the frozen leaves to stderr."""
    table = Table("part", "leaves", "parameters", "bytes", "", title="trained and frozen")
    for label, tree in (("trained", trained), ("frozen", frozen)):
        parts: dict[str, list] = {}
        for name, leaf in named_leaves(tree):
            parts.setdefault("/".join(name.split("/")[:2]), []).append(leaf)
        for part, leaves in parts.items():
            numbers = len(leaves), count_params(leaves), nbytes(leaves)
            table.add_row(part, *(f"{number:,}" for number in numbers), label)
    total = count_params(trained) + count_params(frozen)
    share = 100 * count_params(trained) / total
    table.caption = f"{count_params(trained):,} of {total:,} parameters are trained ({share:.3g}%)"
    Console(stderr=True).print(table)
