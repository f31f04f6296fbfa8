"""The notice to leave: SIGTERM, which a preempted machine sends, and Ctrl-C.

    with listening():       # the commands that resume; a library call keeps its caller's signals
        fit(config, folder)

    with shared(agreed):    # several processes: jax listens, and they leave at the same step
        fit(config, folder)

The first signal only leaves a notice; the train loops `poll` for it at every step, evaluations at
every batch. A second one ends the process at once, as SIGKILL does, which a run survives as well.
Invariant: nothing is raised anywhere but in `poll`, so no line of code is left half done.
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
"""Seconds in which another signal is the same notice: a shell may forward what all have got."""

_notice: signal.Signals | None = None
_agreed: Callable[[int], bool] | None = None
_polls = itertools.count(1)


def poll() -> None:
    """Raises Preempted where a signal has come and `listening` or `shared` is active."""
    if _agreed is not None:
        if _agreed(next(_polls)):
            raise Preempted("ended by SIGTERM")
    elif _notice is not None:
        raise Preempted(f"ended by {_notice.name}")


@contextlib.contextmanager
def shared(agreed: Callable[[int], bool]) -> Iterator[None]:
    """While it lasts, a SIGTERM that one of several processes gets is a notice for all.

    Ctrl-C interrupts, as where nobody listens: whoever started the processes gets it, not they.

    Args:
        agreed: Whether all leave at the poll of that number. They poll equally often.
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
    """While it lasts, signals are notices. Outside the main thread, which gets none, it is empty.

    A thread reads them, so that they are answered while the main thread compiles or waits.
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
    """Reads the number of each signal until the pipe is closed."""
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
