"""Processes that meet before jax connects them: what they say where one does not come."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spt_jax.distributed.rendezvous import Place, meet, receive, send
from spt_jax.errors import RunError


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def meet_all(places: list[Place], timeout: float):
    """What `meet` gives or raises for each place, all at the same time."""

    def attempt(place):
        try:
            return meet(place, timeout)
        except RunError as error:
            return str(error)

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(attempt, places))


def close(*groups):
    for group in groups:
        for link in group.values():
            link.close()


def test_each_process_is_connected_with_process_0():
    address = free_address()
    first, second, third = meet_all([Place(address, 3, index) for index in range(3)], 20)
    assert sorted(first) == [1, 2] and list(second) == list(third) == [0]
    send(third[0], {"line": "hello"})
    assert receive(first[2]) == {"line": "hello"}
    close(first, second, third)


def test_an_unreachable_coordinator_is_named_and_waited_for_no_longer_than_configured():
    started = time.monotonic()
    with pytest.raises(RunError, match=r"process 1 of 2 could not join the coordinator 127.0.0.1:"):
        meet(Place(free_address(), 2, 1), 1.0)
    assert time.monotonic() - started < 3


def test_process_0_says_who_did_not_come():
    address = free_address()
    first, _ = meet_all([Place(address, 3, index) for index in (0, 1)], 1.0)
    assert f"process 2 of 3 did not come to the coordinator {address} within 1 s" in first


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((3, 1), "process 1 was told of 3 processes but process 0 of 2; give all the same --dist"),
        ((2, 1), "two processes were told that they are process 1 of"),
    ],
)
def test_processes_that_were_told_different_things_hear_of_it(second, message):
    address = free_address()
    count = 3 if "two processes" in message else 2
    second = (count, 1) if count == 3 else second
    places = [Place(address, count, 0), Place(address, *second)]
    if count == 3:
        places.append(places[1])
    found = meet_all(places, 20)
    assert all(message in problem for problem in found)


def test_a_stranger_on_the_port_does_not_stop_the_others():
    address = free_address()
    host, port = address.split(":")
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(meet, Place(address, 2, 0), 20)
        while True:
            try:
                stranger = socket.create_connection((host, int(port)))
                break
            except OSError:
                time.sleep(0.01)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.close()
        second = meet(Place(address, 2, 1), 20)
        assert list(first.result()) == [1]
        close(first.result(), second)


def test_a_port_in_use_is_one_line():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match=f"process 0 cannot listen on .*127.0.0.1:{port}"):
            meet(Place(f"127.0.0.1:{port}", 2, 0), 5)


def strange_line(address: str, line: bytes) -> None:
    """Sends a line to process 0, which may not listen yet, and waits until it is closed."""
    host, port = address.split(":")
    for _ in range(200):
        try:
            with socket.create_connection((host, int(port)), timeout=10) as stranger:
                stranger.sendall(line)
                stranger.recv(1)
            return
        except ConnectionRefusedError:
            time.sleep(0.02)


@pytest.mark.parametrize(
    "line",
    [
        b'"ab"\n',
        b"[1, 2]\n",
        b"[1, 99]\n",
        b'["spt_jax", "1", 2]\n',
        b'["spt_jax", 1.0, 2]\n',
        b'["spt_jax", 1]\n',
        b'{"spt_jax": 1}\n',
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe\n",
        b"null\n",
    ],
)
def test_a_line_of_a_stranger_neither_ends_the_run_nor_takes_a_place(line):
    address = free_address()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(meet, Place(address, 2, 0), 20)
        strange_line(address, line)
        second = threads.submit(meet, Place(address, 2, 1), 20)
        links = first.result(), second.result()
    assert sorted(links[0]) == [1] and sorted(links[1]) == [0]
    close(*links)


def test_an_index_beyond_the_count_is_named_to_all():
    address = free_address()
    found = meet_all([Place(address, 2, 0), Place(address, 2, 5)], 20)
    message = "told that it is process 5 of 2; expected --distributed.process_id from 0 to 1"
    assert all(message in problem for problem in found)


def test_a_slow_line_does_not_prolong_the_wait():
    mine, other = socket.socketpair()
    with mine, other, ThreadPoolExecutor(1) as threads:
        started = time.monotonic()
        reading = threads.submit(receive, mine, 0.5)
        while not reading.done() and time.monotonic() - started < 5:
            other.sendall(b" ")
            time.sleep(0.05)
        with pytest.raises(OSError):
            reading.result()
        assert time.monotonic() - started < 3
