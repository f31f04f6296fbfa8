"""The one exception of our own, and the hint that many messages end with."""

import difflib
from collections.abc import Iterable


class RunError(RuntimeError):
    """The input was good but the run failed: loss not finite, no whole checkpoint, disk, device.

    Bad input raises ValueError, TypeError or FileNotFoundError instead. The command line turns
    those into exit code 2 and this one into exit code 1.
    """


def suggest(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the known name that is most like the given one, or nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
