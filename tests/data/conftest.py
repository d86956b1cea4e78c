"""A proxy that breaks things on their way from a real S3 server, and shard sets whose pixels tell their sample."""

import contextlib
import http.client
import io
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from shard_sets import ShardWriter

from dira_dist.data.shards import Sample, ShardSetIndex


@dataclass(frozen=True)
class Fault:
    """What happens to one answer.

    Attributes:
        kind: ``reset`` or ``close`` the connection after some bytes of the body, say nothing more from there on
            (``stall``), declare and send a shorter body (``short``), or answer with an error (``status``).
    """

    kind: Literal["reset", "close", "stall", "short", "status"]
    after_bytes: int = 0
    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it. ``number`` counts the GETs of objects from 0; other requests have -1."""

    number: int
    method: str
    path: str
    start: int


class FaultyProxy:
    """Forwards HTTP to ``upstream`` and does to the answers what :attr:`plan` says."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.plan: Callable[[Request], Fault | None] = lambda request: None
        self.requests: list[Request] = []
        self.object_bytes = 0
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def object_gets(self) -> list[Request]:
        return [request for request in self.requests if request.number >= 0]

    def first(self, count: int, fault: Fault) -> None:
        """Plans a fault for the first ``count`` GETs of shards."""
        self.plan = lambda request: fault if 0 <= request.number < count else None

    def note(self, method: str, path: str, byte_range: str | None) -> Request:
        start = int(re.sub(r"\D.*", "", (byte_range or "0").removeprefix("bytes=")))
        with self._lock:
            number = len(self.object_gets) if method == "GET" and path.endswith(".tar") else -1
            request = Request(number, method, path, start)
            self.requests.append(request)
        return request

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = proxy.note(self.command, self.path, self.headers.get("Range"))
                fault = proxy.plan(request)
                if fault is not None and fault.kind == "status":
                    self.answer_status(fault)
                    return
                upstream = http.client.HTTPConnection(proxy.upstream)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                data = response.read()
                upstream.close()
                self.answer(response, data, fault, request)

            def answer_status(self, fault: Fault) -> None:
                data = f"<Error><Code>{fault.code}</Code><Message>planned</Message></Error>".encode()
                self.send_response(fault.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def answer(
                self, response: http.client.HTTPResponse, data: bytes, fault: Fault | None, request: Request
            ) -> None:
                sent = data[: fault.after_bytes] if fault else data
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                declared = len(sent) if fault and fault.kind == "short" else len(data)
                length = response.getheader("Content-Length") if self.command == "HEAD" else str(declared)
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(sent)
                self.wfile.flush()
                if request.number >= 0:
                    proxy.object_bytes += len(sent)
                if fault and fault.kind != "short":
                    self.break_off(fault)

            def break_off(self, fault: Fault) -> None:
                if fault.kind == "stall":
                    proxy.released.wait()
                if fault.kind == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RDWR) if fault.kind == "close" else self.connection.close()
                self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815  # names that http.server asks for

            def log_message(self, *_: object) -> None:
                pass

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # broken off on purpose
                    super().finish()

        return Handler


@pytest.fixture
def proxy(s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Stands between every client made from now on and the S3 server."""
    made = FaultyProxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


MakeSet = Callable[..., ShardSetIndex]


@pytest.fixture
def make_set() -> MakeSet:
    """Writes a set whose sample ``i`` is an 8 px wide image of value ``i`` with the label ``number: i``."""

    def make(
        address: str, samples: int = 60, per_shard: int = 7, bad: tuple[int, ...] = (), height_px: int = 8
    ) -> ShardSetIndex:
        with ShardWriter(address, mode="L", encoding="png", samples_per_shard=per_shard) as writer:
            for number in range(samples):
                image = png(np.full((height_px + number % 3, 8), number % 256, dtype=np.uint8))
                if number in bad:
                    image = image[:-20]
                writer.add(Sample(f"k{number:04d}", image, "png", height_px, 8, {"labels": {"number": number}}))
        return writer.index

    return make


@pytest.fixture
def shard_set(tmp_path: Path, make_set: MakeSet) -> str:
    """60 samples in 9 shards in a folder."""
    make_set(str(tmp_path / "set"))
    return str(tmp_path / "set")


@pytest.fixture
def fault() -> type[Fault]:
    return Fault
