"""End a run cleanly on SIGTERM, which a preempted machine gets, and on Ctrl-C.

    with listening():       # in commands; a library call leaves its caller's signal handlers alone
        fit(config, folder)

    with shared(agreed):    # several processes: jax listens, and all stop at the same step
        fit(config, folder)

The first signal is only recorded. Training loops call `poll` at every step, and evaluations at
every batch. A second signal ends the process at once, like SIGKILL, which a run survives, too.

Invariant: only `poll` raises, so a signal never interrupts other code.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from spt_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)

SAME_NOTICE = 0.3
"""Seconds in which another signal counts as the same one, because a shell may forward a copy."""

_notice: signal.Signals | None = None
_agreed: Callable[[int], bool] | None = None
_polls = itertools.count(1)


def poll() -> None:
    """Raise Preempted if a signal has arrived and `listening` or `shared` is active."""
    if _agreed is not None:
        if _agreed(next(_polls)):
            raise Preempted("ended by SIGTERM")
    elif _notice is not None:
        raise Preempted(f"ended by {_notice.name}")


@contextlib.contextmanager
def shared(agreed: Callable[[int], bool]) -> Iterator[None]:
    """Stop all processes at the same poll after one of them gets SIGTERM.

    Ctrl-C raises KeyboardInterrupt as usual.

    Args:
        agreed: Function of the number of a poll that tells whether all processes stop there. All
            processes poll equally often.
    """
    global _agreed
    old_writer = signal.set_wakeup_fd(-1)
    old_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    _agreed = agreed
    try:
        yield
    finally:
        _agreed = None
        signal.signal(signal.SIGINT, old_handler)
        signal.set_wakeup_fd(old_writer)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Record SIGTERM and Ctrl-C for `poll`. Do nothing outside the main thread.

    A thread reads the signals, so that it can answer while the main thread compiles or waits.
    """
    global _notice
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)
        _notice = None


def _watch(reader: int) -> None:
    """Read the number of each signal until the pipe is closed."""
    global _notice
    noticed = 0.0
    while byte := os.read(reader, 1):
        if byte[0] not in SIGNALS:
            continue
        if _notice is None:
            _notice, noticed = signal.Signals(byte[0]), time.monotonic()
            line = f"{_notice.name}: the run saves and ends; a second signal ends it at once"
            print(line, file=sys.stderr, flush=True)
        elif time.monotonic() - noticed > SAME_NOTICE:
            os._exit(128 + byte[0])
