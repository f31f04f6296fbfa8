"""The exceptions of our own, what many messages are made of, and how a command ends by them."""

import contextlib
import difflib
import errno
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class RunError(RuntimeError):
    """The input was good but the run failed: loss not finite, no whole checkpoint, disk, device.

    Bad input raises ValueError, TypeError or FileNotFoundError instead. The command line turns
    those into exit code 2 and this one into exit code 1.
    """


class FailedRows(RunError):
    """The run is finished, but some rows could not be answered: exit code 3.

    The same command, given again, would not answer them either.
    """


class Preempted(RunError):
    """A signal asked the run to leave, and it lost nothing: exit code 75, "try again later"."""


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turns XLA's error for a device without room, of many lines, into a RunError with advice."""
    try:
        yield
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = shorten(str(error).partition("RESOURCE_EXHAUSTED:")[2], 160)
        raise RunError(f"a device is out of memory: {reason.rstrip('.')}; {advice}") from error


BAD_INPUT = (
    ValueError,
    TypeError,
    KeyError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What the user gave was wrong: exit code 2."""


def describe(error: BaseException, argv: Sequence[str]) -> tuple[str, int]:
    """What ends a command: its line for the user, empty for none, and the exit code.

    Args:
        error: What was raised.
        argv: The command and its arguments.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{'; the same command continues it' if _resumes(argv) else ''}", 130
    if isinstance(error, BrokenPipeError):
        return "", 141
    if isinstance(error, Preempted):
        return f"{error}; the same command goes on from there", 75
    too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    bad_input = too_long or isinstance(error, BAD_INPUT)
    code = 3 if isinstance(error, FailedRows) else 2 if bad_input else 1
    return f"error: {one_line(error)}", code


def one_line(error: BaseException) -> str:
    """The message of an error, with its type where that is none of the usual ones."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    else:
        message = str(error)
    message = visible(" ".join(message.split())) or "no message"
    known = isinstance(error, (RunError, OSError, *BAD_INPUT))
    return message if known else f"{type(error).__name__}: {message}"


def _resumes(argv: Sequence[str]) -> bool:
    to_file = any(argument.partition("=")[0] == "--output" for argument in argv)
    return argv[0] in ("train", "sweep", "pretrain") or (argv[0] == "predict" and to_file)


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message where the condition does not hold."""
    if not condition:
        raise ValueError(message)


def choose(what: str, given: str, known: Mapping[str, T]) -> T:
    """Return the value of `known` under a given name. Dispatch on a name ends here in an error.

    Raises:
        ValueError: There is no such name. The message calls it `what`.
    """
    if given not in known:
        raise ValueError(
            f"{what} is {given!r}, expected one of {', '.join(known)}{suggest(str(given), known)}"
        )
    return known[given]


def suggest(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the known name that is most like the given one, or nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, changes of the writing direction, and half surrogates."""


def visible(text: str) -> str:
    """Return text from outside on one line, with what a terminal would obey escaped as in JSON.

    A name in a file may hold escape codes that recolour or overwrite what the terminal shows, or
    line breaks that look like further lines of ours. The result of `json.dumps` stays valid JSON.
    """
    return _UNPRINTED.sub(lambda found: json.dumps(found[0])[1:-1], text)


def shorten(text: str, length: int = 60) -> str:
    """A value for a message: one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
