"""A server in a thread of the test. It needs the extra `serve`, and httpx."""

import asyncio
import io
import json
import socket
import threading
import time

import httpx

from spt_jax.config.serve import ServeConfig
from spt_jax.serving import server
from spt_jax.serving.telemetry import Telemetry

LIMITS = ServeConfig(port=0, timeout=30, max_body=4000, read_timeout=1, max_connections=20)


class Running:
    """A server in a thread, on a port of its own, before an engine that runs already."""

    def __init__(self, engine, config=LIMITS, **options):
        self.log, self.telemetry = io.StringIO(), Telemetry()
        self.server = server.make_server(
            engine, config, telemetry=self.telemetry, log=self.log, **options
        )
        self.socket = server.bind(config)
        self.address = self.socket.getsockname()[:2]
        self.url = "http://{}:{}".format(*self.address)
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve([self.socket]))
        )

    def __enter__(self):
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self._client.close()
        self._thread.join(60)

    def ask(self, method, path, **options):
        return self._client.request(method, path, **options)

    def post(self, path, /, **body):
        return self.ask("POST", path, json=body)

    def send(self, data, seconds=10.0):
        """What comes back for raw bytes, until the server closes or `seconds` have passed."""
        with socket.create_connection(self.address, timeout=seconds) as connection:
            connection.sendall(data)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
            except TimeoutError:
                return answer, False
        return answer, True

    def lines(self):
        return [json.loads(line) for line in self.log.getvalue().splitlines()]
