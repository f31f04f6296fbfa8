"""The exceptions of our own, and what many messages are made of."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class RunError(RuntimeError):
    """The input was good but the run failed: loss not finite, no whole checkpoint, disk, device.

    Bad input raises ValueError, TypeError or FileNotFoundError instead. The command line turns
    those into exit code 2 and this one into exit code 1.
    """


class FailedRows(RunError):
    """The run is finished, but some rows could not be answered: exit code 3.

    The same command, given again, would not answer them either.
    """


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


def suggest(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the known name that is most like the given one, or nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def shorten(text: str, length: int = 60) -> str:
    """A value for a message: one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
