"""The command line of the benchmarks that compare with torch: options, output and errors."""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any


class SideError(RuntimeError):
    """A side failed, or the two sides computed different results."""


class Options(argparse.ArgumentParser):
    """A parser with options for positive integers and for the form of the result.

    Args:
        doc: Docstring of the script. Its first line is the description.
    """

    def __init__(self, doc: str | None):
        super().__init__(description=(doc or "").splitlines()[0], allow_abbrev=False)

    def number(
        self, name: str, default: int | tuple[int, ...], described: str, **more: Any
    ) -> None:
        """Add an option that is a positive integer, or several with `nargs`."""
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        described += f" (default {shown})"
        self.add_argument(
            name, type=_positive, default=default, metavar="N", help=described, **more
        )

    def add_form(self) -> None:
        """Add the options for the form of the result."""
        form = self.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one JSON object")
        form.add_argument(
            "--markdown",
            action="store_true",
            help="print the section of docs/benchmarks.md (default)",
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)


def say(text: str) -> None:
    """Print a line of progress to stderr, because stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def run(
    name: str,
    other: str,
    needs: tuple[str, ...],
    measure: Callable[[dict, str], dict],
    markdown: Callable[[dict], str],
    argv: list[str],
    args: argparse.Namespace,
) -> int:
    """Measure, print the result and return the exit code.

    Args:
        name: Name of the script.
        other: Name of what it compares with.
        needs: Packages that the other side needs.
        measure: Function of the job (the options and `cores`) and the command line that returns
            the result.
        markdown: Function that formats the result as a section of docs/benchmarks.md.
        argv: The arguments as they were given.
        args: The parsed arguments.
    """
    absent = [package for package in needs if importlib.util.find_spec(package) is None]
    if absent:
        say(
            f"benchmarks/{name}.py compares with {other}, "
            f"but {' and '.join(absent)} cannot be imported; "
            'pip install -e ".[parity]" brings both'
        )
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    job = {**vars(args), "cores": cores or 1}
    try:
        result = measure(job, " ".join([f"python benchmarks/{name}.py", *argv]))
    except SideError as error:
        say(str(error))
        return 1
    print(json.dumps(result) if args.json else markdown(result))
    return 0
