"""The process that serves: the socket, slow connections, signals, and the end.

SIGTERM and Ctrl-C close the socket. Requests that were accepted are answered, and the process ends.
A failure of the devices ends it too, as a RunError with the cause.
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from typing import IO, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from spt_jax.config.serve import ServeConfig
from spt_jax.errors import RunError, one_line
from spt_jax.serving.app import make_app
from spt_jax.serving.engine import Engine
from spt_jax.serving.gate import write_line
from spt_jax.serving.telemetry import Telemetry

MAX_HEAD = 16 << 10
"""Most bytes of the head of a request."""


class Server(uvicorn.Server):
    """A server of one engine, which ends by itself when the engine fails."""

    def __init__(self, engine: Engine, config: uvicorn.Config, log: IO[str] | None):
        super().__init__(config)
        self.engine, self.log = engine, log
        self.cut = 0
        """Requests that were cut off because they took too long after SIGTERM."""

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.engine.batcher.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.note({"event": "draining", "requests": len(self.server_state.tasks)})
        await super().shutdown(sockets)
        self.cut = sum(not task.done() for task in self.server_state.tasks)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals without raising them again at the end: a drained server exits with 0."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        try:
            for number in numbers:
                loop.add_signal_handler(number, self.handle_exit, number, None)
        except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            numbers = ()
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def note(self, line: dict[str, Any]) -> None:
        """Write an event to the log."""
        if self.log is not None:
            write_line(self.log, line)


def make_server(
    engine: Engine,
    config: ServeConfig,
    *,
    telemetry: Telemetry,
    log: IO[str] | None = None,
    **options: Any,
) -> Server:
    """Return a server that is not started; all arguments are those of `make_app`."""
    app = make_app(engine, config, telemetry=telemetry, log=log, **options)
    telemetry.watch_queue(lambda: engine.batcher.waiting)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=_protocol(config),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2 * config.max_connections,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=max(1, round(config.drain)),
    )
    return Server(engine, settings, log)


def serve(server: Server, listening: socket.socket) -> None:
    """Serve on a socket until a signal or a failure of the devices.

    Raises:
        RunError: The devices failed, or requests were not answered within `drain` seconds.
    """
    engine, started = server.engine, time.monotonic()
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server.note({"event": "listening", "address": address, "models": engine.names()})

    async def run() -> None:
        announcement = asyncio.create_task(_announce(server, started))
        await server.serve([listening])
        announcement.cancel()

    engine.start()
    asyncio.run(run())
    if engine.batcher.failure is not None:
        raise RunError(f"the device failed: {one_line(engine.batcher.failure)}")
    engine.stop()
    if server.cut:
        seconds = server.config.timeout_graceful_shutdown
        raise RunError(
            f"{server.cut} requests were not answered within {seconds} s after the signal; set "
            "--drain to more seconds"
        )
    server.note({"event": "ended"})


def bind(config: ServeConfig) -> socket.socket:
    """Return a socket that listens on the address of a config.

    Raises:
        ValueError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio switches off Nagle's algorithm only for sockets that name TCP as their protocol. With
    # it, the body of an answer waits 40 ms until the client has acknowledged the head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise ValueError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; give "
            "another --host or --port"
        ) from error
    return listening


async def _announce(server: Server, started: float) -> None:
    """Note when everything is compiled."""
    while not server.engine.ready and server.engine.batcher.failure is None:
        await asyncio.sleep(0.05)
    if server.engine.ready:
        programs = sum(1 for _ in server.engine.batcher.shapes())
        seconds = round(time.monotonic() - started, 1)
        server.note({"event": "ready", "seconds": seconds, "programs": programs})


def _protocol(config: ServeConfig) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits for connections and for the time that a head takes."""

    class Protocol(H11Protocol):
        since = 0.0
        timer: asyncio.TimerHandle | None = None

        @property
        def idle(self) -> bool:
            """Whether no request is being answered here."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            self._wait_for_head()
            if len(self.connections) > config.max_connections:
                others: list[Any] = list(self.connections)
                idle = [other for other in others if other.idle]  # this one at least
                min(idle, key=lambda other: other.since).transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.idle:
                self._stop_timer()
            elif self.timer is None:
                self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self.timer = self.loop.call_later(config.read_timeout, self._give_up)

        def _stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _give_up(self) -> None:
            self.timer = None
            if self.idle:
                self.transport.close()

    return Protocol
