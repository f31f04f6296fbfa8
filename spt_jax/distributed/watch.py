"""End all processes of a run when one of them ends early, and print the cause once.

Every process has a connection to process 0 (`rendezvous.py`). A process that fails sends its error
there, and process 0 tells the others. The connection of a process that is killed closes. TCP
keepalive closes the connection of a machine that is gone. Each process then exits from a thread,
because its main thread may wait forever in a collective operation for the missing process.

jax also has a heartbeat, which ends a process in C++ with a stack trace. It waits twice as long
and covers what the connections do not show, such as a suspended process. When process 0 is
gone, jax aborts the others before Python can print the cause, so SIGABRT is delayed.
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
    """Ends this process when another process ends early.

    Args:
        place: Position of this process in the run.
        links: Connections from `rendezvous.meet`.
        heartbeat: Seconds after which a machine that does not answer counts as gone.
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
        """Tell the other processes that this one ends normally."""
        for link in self._links.values():
            send(link, None)
        _set_abort(self._old_abort)

    def fail(self, error: BaseException, argv: Sequence[str]) -> NoReturn:
        """End all processes with this error, unless another process failed first.

        Args:
            error: The exception that this process raised.
            argv: The command and its arguments.
        """
        if "--debug" in argv:
            traceback.print_exception(error, file=sys.__stderr__)
        if type(error).__name__ == "JaxRuntimeError":
            # This is often caused by another process being gone, which `_listen` reports.
            time.sleep(self._heartbeat + 1)
        line, code = describe(error, argv)
        if self._place.index == 0:
            self._end(line, code)
        else:
            time.sleep(_SAME_ERROR_SECONDS)  # if all fail alike, process 0 reports first
            send(self._links[0], {"line": line, "code": code})
            time.sleep(_LEAVE_SECONDS)  # process 0 prints it and tells us to exit
            self._leave(line, code)
        raise AssertionError("unreachable")

    def _listen(self, index: int, link: socket.socket) -> None:
        try:
            news = receive(link)
        except (OSError, ValueError):
            gone = f"error: process {index} of {self._place.count} is gone: it was killed, or its "
            line = gone + "machine or network failed; see its own output and its system's log"
            # If process 0 is gone, process 1 prints.
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
        """On process 0: print the cause, tell the others to exit, and exit after them."""
        if not self._ending.acquire(blocking=False):
            if threading.current_thread() in self._threads:
                return
            time.sleep(2 * _LEAVE_SECONDS)  # the first thread ends this process
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
    """Set a C function as the handler of SIGABRT and return the previous handler.

    Python cannot run in a thread that aborts, but C's `sleep` can. A handler receives the number of
    its signal, so `sleep` waits 6 seconds. In that time `_listen` prints which process is gone and
    exits. If no process is gone, the process aborts after the 6 seconds.
    """
    set_handler = _C.signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return set_handler(signal.SIGABRT, handler)


def _print(line: str) -> None:
    if line:
        print(f"spt-jax: {line}", file=sys.__stderr__, flush=True)


def _ask_after(link: socket.socket, seconds: int) -> None:
    """Let TCP keepalive close a connection whose other side is silent for about `seconds`."""
    each = max(1, seconds // 3)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", each), ("TCP_KEEPINTVL", each), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # Linux
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
