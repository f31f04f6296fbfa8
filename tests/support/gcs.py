"""A bucket in memory that speaks as much of Google Cloud Storage's JSON API as TensorStore does."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

NAMES_LEADING_OUT = (
    "model/../../../evil",
    "model/./evil",
    "model//evil",
    "model/c:/evil",
    "model\\..\\evil",
    "",
    "evil\x00",
    "evil\n",
    "\ud800evil",
    "x" * 300,
    "model/" + "x" * 300,
    "model/" + "/".join("x" * 100 for _ in range(11)),
)
"""Names in a bucket that lead out of the folder of a copy, or are none of a file."""


class FakeGCS(ThreadingHTTPServer):
    """The server.

    Attributes:
        objects: The bytes of each object by `bucket/name`.
        requests: What was asked, `METHOD bucket/name`, in order.
        refuse: Called with each of those before it is answered; returns a status for an error, or
            None where it is answered.
        lose: The same, called after a write is done.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.buckets = {"bucket"}
        self.requests: list[str] = []
        self.refuse = self.lose = lambda request: None

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.generations[key] = self.generations.get(key, 0) + 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeGCS
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        server, url = self.server, urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        options = {name: values[0] for name, values in parse_qs(url.query).items()}
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
        assert found, self.path
        bucket, name = found[1], unquote(found[2] or options.get("name", ""))
        key = f"{bucket}/{name}"
        request = f"{self.command} {key}"
        server.requests.append(request)
        if status := server.refuse(request):
            said = f"someone@x does not have access to {key} ({status})."
            return self._answer(status, {"error": {"code": status, "message": said}})
        if bucket not in server.buckets:
            said = "The specified bucket does not exist."
            return self._answer(404, {"error": {"code": 404, "message": said}})
        if self.command == "POST":
            expected = options.get("ifGenerationMatch")
            existing = str(server.generations[key]) if key in server.objects else "0"
            if expected not in (None, existing):
                return self._answer(412, {"error": {"code": 412, "message": "not that version"}})
            server.put(key, data)
            if status := server.lose(request):
                return self._answer(status, {"error": {"code": status, "message": "lost"}})
            return self._answer(200, self._describe(key))
        if self.command == "GET" and not name:
            prefix = f"{bucket}/{options.get('prefix', '')}"
            start, end = (options.get(side, "") for side in ("startOffset", "endOffset"))
            items = [
                self._describe(key)
                for key in sorted(server.objects)
                if key.startswith(prefix) and start <= key.partition("/")[2] < (end or "\uffff")
            ]
            return self._answer(200, {"kind": "storage#objects", "items": items})
        if key not in server.objects:
            return self._answer(404, {"error": {"code": 404, "message": f"No such object: {key}"}})
        if self.command == "DELETE":
            del server.objects[key]
            return self._answer(204, b"")
        generation = str(server.generations[key])
        return self._answer(200, server.objects[key], x_goog_generation=generation)

    do_GET = do_POST = do_DELETE = _handle

    def _describe(self, key: str) -> dict:
        generation = str(self.server.generations[key])
        size = str(len(self.server.objects[key]))
        return {"name": key.partition("/")[2], "size": size, "generation": generation}


@contextlib.contextmanager
def fake_gcs() -> Iterator[FakeGCS]:
    """A running server, for TensorStore by `TENSORSTORE_GCS_HTTP_URL`."""
    with FakeGCS() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def bucket_for(monkeypatch) -> Iterator[FakeGCS]:
    """A running server that TensorStore takes for Google's, here and in what is started."""
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with fake_gcs() as server:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        yield server
