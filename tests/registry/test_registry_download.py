"""Files come whole or not at all: broken lines, shortened files, and servers that refuse."""

import hashlib
import http.client
import http.server
import socketserver
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from dira_dist.config import RequestError
from dira_dist.models.model_files import write_checksums
from dira_dist.registry.download import BLOCK_BYTES, StoreSource, download, source_of
from dira_dist.registry.fetch import fetch
from dira_dist.registry.registry import register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.task import packaged
from tests.conftest import S3Server

LARGE_BYTES = 5_000_000
TOKEN = "token-of-the-hospital"
WAIT_S = 60


def content(bytes_: int = LARGE_BYTES) -> bytes:
    return np.random.default_rng(0).bytes(bytes_)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class BreakingSource:
    """A source whose line breaks after so many bytes, as often as it is told."""

    def __init__(self, source: StoreSource, breaks: int, after_bytes: int) -> None:
        self._source, self.breaks, self._after = source, breaks, after_bytes
        self.starts: list[int] = []

    def sizes(self) -> dict[str, int]:
        return self._source.sizes()

    def open(self, name: str, start: int) -> tuple[int, Iterator[bytes]]:
        self.starts.append(start)
        begun, blocks = self._source.open(name, start)
        return begun, self._broken(blocks)

    def _broken(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        sent = 0
        for block in blocks:
            if self.breaks and sent + len(block) > self._after:
                self.breaks -= 1
                yield block[: self._after - sent]
                raise ConnectionResetError("the line is cut")
            sent += len(block)
            yield block


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_transfer_goes_on_where_the_line_broke(where: str, s3: S3Server, tmp_path: Path) -> None:
    data, address = content(), str(tmp_path / "there") if where == "folder" else s3.address("there")
    store = source_of(address)
    assert isinstance(store, StoreSource)
    store._store.write_bytes("deep/large.bin", data)
    wanted, seen = {"deep/large.bin": digest(data)}, list[int]()
    source = BreakingSource(store, breaks=2, after_bytes=1_500_000)
    download(source, wanted, tmp_path / "here", lambda here, total: seen.append(here))
    assert source.starts == [0, 1_500_000, 3_000_000]  # within one call
    assert (tmp_path / "here" / "deep" / "large.bin").read_bytes() == data
    assert seen == sorted(seen)
    assert seen[-1] == LARGE_BYTES

    source = BreakingSource(store, breaks=3, after_bytes=1_000_000)
    with pytest.raises(RequestError, match="the same command goes on where it broke off"):
        download(source, wanted, tmp_path / "again")
    download(source, wanted, tmp_path / "again")
    assert source.starts == [0, 1_000_000, 2_000_000, 3_000_000]  # and from one call to the next
    assert [path.name for path in (tmp_path / "again" / "deep").iterdir()] == ["large.bin"]


def test_a_shortened_file_is_told_from_a_broken_line(tmp_path: Path) -> None:
    data, source = content(10_000), StoreSource(str(tmp_path / "there"))
    source._store.write_bytes("a.bin", data[:-1])
    with pytest.raises(RequestError, match=r"a\.bin is damaged where it is stored"):
        download(source, {"a.bin": digest(data)}, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []
    (tmp_path / "here" / f"a.bin.{digest(data)[:16]}.partial").write_bytes(b"of another day" * 1000)
    source._store.write_bytes("a.bin", data)
    download(source, {"a.bin": digest(data)}, tmp_path / "here")
    assert (tmp_path / "here" / "a.bin").read_bytes() == data


def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("../evil", "/etc/evil"):
        with pytest.raises(RequestError, match="lies outside"):
            download(StoreSource(str(tmp_path / "there")), {name: digest(b"")}, tmp_path / "here")


class Gatekeeper(http.server.BaseHTTPRequestHandler):
    """A proxy in front of an MLflow server, as hospitals have it: only requests with the right header come through."""

    protocol_version = "HTTP/1.1"
    allowed: ClassVar[frozenset[str]] = frozenset()
    port: ClassVar[int] = 0
    ranges: ClassVar[list[str]] = []
    cut_after_bytes: ClassVar[int] = 0

    def log_message(self, format: str, *words: Any) -> None: ...  # noqa: A002

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") not in self.allowed:
            self._answer(401, b"<html>who are you?</html>", {"WWW-Authenticate": "Basic"})
            return
        if "Range" in self.headers:
            self.ranges.append(self.headers["Range"])
        server = http.client.HTTPConnection("127.0.0.1", self.port)
        kept = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        server.request(self.command, self.path, body or None, kept)
        answer = server.getresponse()
        self._answer(answer.status, answer.read(), {"Content-Type": answer.headers.get("Content-Type", "text/plain")})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if status == 200 and 0 < self.cut_after_bytes < len(body):
            self.wfile.write(body[: self.cut_after_bytes])
            type(self).cut_after_bytes = 0
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def gate(mlflow_server: Any) -> Iterator[tuple[str, type[Gatekeeper]]]:
    """The gatekeeper's address, and its settings."""
    basic = "Basic " + b64encode(b"anna:geheim").decode()
    settings = {"port": mlflow_server.port, "allowed": frozenset((f"Bearer {TOKEN}", basic)), "ranges": []}
    handler = type("Gate", (Gatekeeper,), settings)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def a_model(folder: Path, value: bytes) -> Path:
    """The least that can be registered, with one large file."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({"encoder.weight": torch.full((1,), float(value[0]))}, folder / "unet.safetensors")
    (folder / "large.bin").write_bytes(value)
    write_checksums(folder)
    return folder


@pytest.mark.parametrize(
    "credentials",
    [
        {"MLFLOW_TRACKING_TOKEN": TOKEN},
        {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "geheim"},
    ],
    ids=["token", "user and password"],
)
def test_everything_goes_through_an_authenticating_proxy(
    gate: tuple[str, type[Gatekeeper]],
    server_config: TrackingConfig,
    credentials: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = server_config.model_copy(update={"uri": gate[0]})
    with pytest.raises(RequestError, match=r"refuses the credentials.*MLFLOW_TRACKING_TOKEN"):
        TrackingRun.create(config, "job", {})
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    run = TrackingRun.create(config, "job", {})
    run.log_metrics({"loss": 1.0}, 1)
    run.log_picture("restorations", np.zeros((8, 8, 3), np.uint8), 1)
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    done = register_version(config, run.run_id, packaged(a_model(tmp_path / "model", content())), timeout_s=0)

    gate[1].cut_after_bytes = 2_000_000  # the answer with the large file breaks
    folder = fetch(done.address, tmp_path / "got", config)
    assert (folder / "large.bin").read_bytes() == content()
    assert gate[1].ranges == [f"bytes={BLOCK_BYTES}-"]  # behind the last whole block that came

    for name, value in credentials.items():
        monkeypatch.setenv(name, value + "x")
    again = [lambda: fetch(done.address, tmp_path / "b", config), lambda: TrackingRun.create(config, "job", {})]
    again.append(lambda: register_version(config, run.run_id, packaged(tmp_path / "model"), timeout_s=0))
    for refused in again:
        with pytest.raises(RequestError, match="refuses the credentials") as told:
            refused()
        assert "geheim" not in str(told.value)
        assert TOKEN not in str(told.value)
