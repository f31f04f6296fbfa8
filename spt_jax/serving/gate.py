"""What every request passes before any route sees it: its id, the key, the limits of its body.

A request gets an id, and must have the key if there is one. Its body is read whole, within limits
of size and time. It ends as one line of JSON in the access log. All this holds for every route and
for unknown paths, because the gate stands in front of the router.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import IO, Any

from spt_jax.config.serve import ServeConfig
from spt_jax.errors import visible

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

LINGER = 16 << 20
"""Most bytes of a body beyond its limit that are read and dropped before the answer is sent."""


class Gate:
    """An ASGI application in front of another one.

    Args:
        app: The application behind it.
        config: Limits.
        api_key: The key that every request must have; None for no key.
        log: Where lines of JSON are written; None for no log.
        on_request: Called with route, status and seconds of each request.
    """

    def __init__(
        self,
        app: App,
        config: ServeConfig,
        *,
        api_key: str | None = None,
        log: IO[str] | None = None,
        on_request: Callable[[str, int, float], None] = lambda route, status, seconds: None,
    ):
        self._app, self._config, self._log, self._on_request = app, config, log, on_request
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.monotonic()
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["state"] = {"id": id, "log": {}}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        try:
            refused = self._refuse(scope, headers)
            body = b""
            # A connection that is closed with a part of the body unread loses the answer too. A
            # client that expects to be asked for its body has sent none yet.
            if refused is None or b"expect" not in headers:
                body, unread = await self._read(headers, receive)
                refused = refused or unread
            scope["state"]["size"] = len(body)
            if refused is not None:
                await refused(send_with_id)
            else:
                await self._app(scope, _replay(body, receive), send_with_id)
        except Exception:
            traceback.print_exc()
            if not status:
                await problem(500, "the server met an error of its own; see its log")(send_with_id)
        finally:
            # Without a status the client left, which nginx calls 499.
            self._finish(scope, status or 499, time.monotonic() - started)

    def _refuse(self, scope: Scope, headers: Mapping[bytes, bytes]) -> "_Sender | None":
        if self._key is not None:
            given = _key_of(headers.get(b"authorization", b""))
            if given is None:
                return problem(
                    401,
                    "no API key is given; send the header Authorization: Bearer KEY",
                    challenge=True,
                )
            if not hmac.compare_digest(_digest(given), self._key):
                return problem(401, "the API key is not that of this server", challenge=True)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        # A page of another site can send a form or plain text, but no JSON without being asked.
        if scope["method"] == "POST" and kind != b"application/json" and _has_body(headers):
            return problem(
                415, "the body is no JSON; send the header Content-Type: application/json"
            )
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > self._config.max_body:
            return self._too_large()
        return None

    async def _read(
        self, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[bytes, "_Sender | None"]:
        body, size = bytearray(), 0
        most, seconds = self._config.max_body, self._config.read_timeout
        try:
            async with asyncio.timeout(seconds):
                more = _has_body(headers)
                while more and size <= most + LINGER:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return b"", _nothing
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        body += part
                    more = message.get("more_body", False)
        except TimeoutError:
            if size <= most:
                return b"", problem(408, f"the body did not arrive within {seconds:g} s")
        return (bytes(body), None) if size <= most else (b"", self._too_large())

    def _too_large(self) -> "_Sender":
        most = self._config.max_body
        return problem(413, f"the body has more than {most:,} bytes; send several requests")

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._on_request(route, status, seconds)
        if self._log is None:
            return
        client = scope.get("client") or (None,)
        line = {
            "event": "request",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": scope["state"]["id"],
            "client": client[0],
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope["state"]["log"],
        }
        write_line(self._log, line)


_Sender = Callable[[Send], Awaitable[None]]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""The type of an error by its status, in OpenAI's words where it has one."""


def problem_body(status: int, message: str, param: str | None, code: str | None) -> bytes:
    """Return the body of an error: one sentence in the form of OpenAI."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": visible(message), "type": kind, "param": param, "code": code or kind}
    return json.dumps({"error": error}).encode()


def problem(status: int, message: str, *, challenge: bool = False) -> "_Sender":
    """Return a function that sends an error; `challenge` makes a browser ask for the key."""
    body = problem_body(status, message, None, None)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if challenge:
        headers.append((b"www-authenticate", b'Basic realm="spt-jax: the key as password"'))
    if status in (408, 413):  # what is left of the body is not read
        headers.append((b"connection", b"close"))

    async def respond(send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return respond


async def _nothing(send: Send) -> None:
    """Send nothing: the client has left."""


def write_line(log: IO[str], line: Mapping[str, Any]) -> None:
    """Write a line of JSON. A log that nobody reads any more ends no request."""
    try:
        print(visible(json.dumps(line)), file=log, flush=True)
    except (OSError, ValueError) as error:
        print(f"the access log cannot be written: {error}", file=sys.stderr)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first, and then what the connection gives."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _key_of(header: bytes) -> bytes | None:
    """Return the key in a header: `Bearer KEY`, or `Basic` with the key as the password."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer" and value.strip():
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2] or None
        except binascii.Error:
            return None
    return None


def _digest(key: bytes) -> bytes:
    """Return a digest, so that the comparison takes as long for a key of any length."""
    return hashlib.sha256(key).digest()
