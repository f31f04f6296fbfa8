"""How the processes of a run end together: by one cause, which process 0 prints, once.

Every process has a connection to process 0 (`rendezvous.py`). One that fails says so there, and
process 0 tells the others; one that is killed is known by the end of its connection, and a machine
that is gone by the kernel, which asks after it. Each then leaves at once, from a thread: the main
one may wait in a collective operation for the process that is gone, and would wait for good.

jax has a heartbeat as well, which ends a process in C++ with a stack trace. It is set to twice the
time, for what the connections do not show, such as a process that was halted. Where process 0 is
gone, jax aborts the others at once, before Python could say why; so an abort waits a little.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from spt_jax.distributed.rendezvous import Place, receive, send
from spt_jax.errors import describe

_SAME_ERROR_SECONDS = 2.0
_LEAVE_SECONDS = 5.0
_C = ctypes.CDLL(None)


class Watch:
    """Ends this process when another one ends before its time.

    Args:
        place: Of this process.
        links: From `rendezvous.meet`.
        heartbeat: Seconds after which a machine that does not answer is gone.
    """

    def __init__(self, place: Place, links: Mapping[int, socket.socket], heartbeat: int):
        self._place, self._links, self._heartbeat = place, links, heartbeat
        self._ending = threading.Lock()
        self._old_abort = _set_abort(ctypes.cast(_C.sleep, ctypes.c_void_p).value)
        self._threads = []
        for index, link in links.items():
            _ask_after(link, heartbeat)
            thread = threading.Thread(target=self._listen, args=(index, link), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Tells the others that this process ends as it should."""
        for link in self._links.values():
            send(link, None)
        _set_abort(self._old_abort)

    def fail(self, error: BaseException, argv: Sequence[str]) -> NoReturn:
        """Ends all processes by this error, unless another one came first.

        Args:
            error: What this process raised.
            argv: The command and its arguments.
        """
        if "--debug" in argv:
            traceback.print_exception(error, file=sys.__stderr__)
        if type(error).__name__ == "JaxRuntimeError":
            # Often only the consequence of a process that is gone, which `_listen` hears of.
            time.sleep(self._heartbeat + 1)
        line, code = describe(error, argv)
        if self._place.index == 0:
            self._end(line, code)
        else:
            time.sleep(_SAME_ERROR_SECONDS)  # an error of every process is process 0's to tell
            send(self._links[0], {"line": line, "code": code})
            time.sleep(_LEAVE_SECONDS)  # process 0 tells it, and this process to leave
            self._leave(line, code)
        raise AssertionError("unreachable")

    def _listen(self, index: int, link: socket.socket) -> None:
        try:
            news = receive(link)
        except (OSError, ValueError):
            gone = f"error: process {index} of {self._place.count} is gone: it was killed, or its "
            line = gone + "machine or network failed; see its own output and its system's log"
            # Without process 0, the first of the others speaks.
            news = {"line": line if self._place.index <= 1 else "", "code": 1}
        else:
            if news is not None and news["line"] and self._place.index == 0:
                news["line"] = f"process {index}: {news['line']}"
        if news is None:
            return
        if self._place.index == 0:
            self._end(**news)
        else:
            self._leave(**news)

    def _end(self, line: str, code: int) -> None:
        """On process 0: says why, tells the others to leave, and leaves after them."""
        if not self._ending.acquire(blocking=False):
            if threading.current_thread() in self._threads:
                return
            time.sleep(2 * _LEAVE_SECONDS)  # the thread that was first ends this process
        for link in self._links.values():
            send(link, {"line": "", "code": code})
        _print(line)
        deadline = time.monotonic() + _LEAVE_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._leave("", code)

    def _leave(self, line: str, code: int) -> NoReturn:
        _print(line)
        sys.stdout.flush()
        os._exit(code)


def _set_abort(handler: int | None) -> int | None:
    """Makes a C function the handler of SIGABRT; returns the one before.

    No Python runs in a thread that aborts, but C's `sleep` does: what it gets as a handler is the
    number of the signal, and so it sleeps 6 seconds, while `_listen` says who is gone and leaves.
    Where nobody is gone, the process aborts then.
    """
    set_handler = _C.signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return set_handler(signal.SIGABRT, handler)


def _print(line: str) -> None:
    if line:
        print(f"spt-jax: {line}", file=sys.__stderr__, flush=True)


def _ask_after(link: socket.socket, seconds: int) -> None:
    """Has the kernel end a connection whose other side has not answered for about `seconds`."""
    each = max(1, seconds // 3)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", each), ("TCP_KEEPINTVL", each), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # Linux
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
