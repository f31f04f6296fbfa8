"""Let the processes of a run find each other, before jax connects them.

jax waits for its coordinator in C++. It waits longer than its timeout, and then ends the process
without naming the address. So the processes first connect by plain sockets on the same port.
Process 0 counts the others and tells each to continue, or why the run cannot start. The connections
stay open afterwards, so that a closed connection shows that the other process is gone.
"""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from spt_jax.errors import RunError

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0
_LONGEST = 1 << 20
_GREETING = "spt_jax"
"""A process shows that it is one of ours by the line [greeting, index, count]."""


@dataclass(frozen=True)
class Place:
    """The position of this process in the run.

    Args:
        coordinator: HOST:PORT, an address of process 0 that all other processes can reach.
        count: Number of processes.
        index: Index of this process, from 0.
    """

    coordinator: str
    count: int
    index: int


def meet(place: Place, timeout: float) -> dict[int, socket.socket]:
    """Wait until all processes are connected to process 0.

    Args:
        place: Position of this process.
        timeout: Longest time to wait, in seconds.

    Returns:
        Connections by the index of the other process: on process 0 one to each other process,
        on the others one to process 0. `watch.py` uses them to notice that a process ended.

    Raises:
        RunError: Process 0 cannot be reached, a process is missing, or the processes were given
            contradicting options. An error found by process 0 is raised on all connected processes.
    """
    host, _, port = place.coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if place.index == 0:
        return _gather(place, int(port), deadline, timeout)
    return {0: _join(place, host.strip("[]"), int(port), deadline, timeout)}


def _gather(place: Place, port: int, deadline: float, timeout: float) -> dict[int, socket.socket]:
    found: dict[int, socket.socket] = {}
    problem = None
    with _listen(place, port) as listener:
        while len(found) < place.count - 1 and problem is None:
            try:
                listener.settimeout(max(deadline - time.monotonic(), 1e-3))
                peer, _ = listener.accept()
            except TimeoutError:
                missing = (str(index) for index in range(1, place.count) if index not in found)
                problem = (
                    f"process {', '.join(missing)} of {place.count} did not come to the "
                    f"coordinator {place.coordinator} within {timeout:g} s; start all processes, "
                    "or raise --distributed.timeout"
                )
                break
            try:
                wait = min(_HELLO_SECONDS, max(deadline - time.monotonic(), 1e-3))
                index, count = _read_hello(receive(peer, wait))
            except (OSError, ValueError):  # not one of our processes, or it died
                peer.close()
                continue
            if count != place.count:
                problem = (
                    f"process {index} was told of {count} processes but process 0 of "
                    f"{place.count}; give all the same --distributed.num_processes"
                )
            elif not 0 < index < place.count:
                problem = (
                    f"a process was told that it is process {index} of {place.count}; expected "
                    f"--distributed.process_id from 0 to {place.count - 1}"
                )
            elif index in found:
                problem = (
                    f"two processes were told that they are process {index} of {place.count}; "
                    "give each its own --distributed.process_id"
                )
                send(peer, problem)
                peer.close()
            found.setdefault(index, peer)
    for peer in found.values():
        send(peer, problem)
        peer.settimeout(None)
    if problem is not None:
        for peer in found.values():
            peer.close()
        raise RunError(problem)
    return found


def _listen(place: Place, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise RunError(
            f"process 0 cannot listen on the port of the coordinator {place.coordinator} "
            f"({error.strerror}); end what uses it, or give another port"
        ) from error


def _join(place: Place, host: str, port: int, deadline: float, timeout: float) -> socket.socket:
    while True:
        peer = None
        try:
            left = max(deadline - time.monotonic(), 1e-3)
            peer = socket.create_connection((host, port), timeout=left)
            send(peer, [_GREETING, place.index, place.count])
            problem = receive(peer, left)
        except (OSError, ValueError) as error:
            came = peer is not None
            if peer is not None:
                peer.close()
            if time.monotonic() + _RETRY_SECONDS < deadline:
                time.sleep(_RETRY_SECONDS)
                continue
            reason = getattr(error, "strerror", None) or "no answer"
            raise RunError(
                f"process {place.index} of {place.count} could not join the coordinator "
                f"{place.coordinator} within {timeout:g} s "
                f"({'it still waits for others' if came else reason}); start all processes, and "
                "give an address of process 0"
            ) from error
        if problem is not None:
            peer.close()
            raise RunError(problem)
        peer.settimeout(None)
        return peer


def _read_hello(message: Any) -> tuple[int, int]:
    """Return the index and count that a process was told; raise ValueError if it is not ours."""
    match message:
        case [str(greeting), int(index), int(count)] if greeting == _GREETING:
            return index, count
    raise ValueError("the line is not a greeting of this program")


def send(peer: socket.socket, message: Any) -> None:
    """Send a line of JSON. Do nothing if the other side is gone."""
    try:
        peer.sendall((json.dumps(message) + "\n").encode())
    except OSError:
        pass


def receive(peer: socket.socket, seconds: float | None = None) -> Any:
    """Wait for a line of JSON.

    Args:
        peer: The connection.
        seconds: Longest time to wait for the whole line. Parts of it do not prolong the wait. None
            waits without end.

    Raises:
        OSError: No complete line has arrived.
        ValueError: The line is not JSON.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    data = b""
    while not data.endswith(b"\n"):
        if deadline is not None:
            peer.settimeout(max(deadline - time.monotonic(), 1e-3))
        block = peer.recv(1 << 16)
        if not block or len(data) > _LONGEST or (deadline and time.monotonic() > deadline):
            raise ConnectionError("the connection was closed")
        data += block
    return json.loads(data)
