"""A real MLflow server over HTTP, and a wire to it that can be cut."""

import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

START_WITHIN_S = 300


def free_port() -> int:
    """A port below those that connections out of this machine take, so that it is free still when a server starts."""
    while True:
        port = random.SystemRandom().randrange(10_240, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class MlflowServer:
    """``mlflow server`` as a process of its own; it can be stopped and started again on the same address and data.

    Args:
        folder: for its log, and for database and artifacts where nothing else is said.
        options: of the command line, such as where artifacts go.
        backend: address of its database.
    """

    def __init__(self, folder: Path, *options: str, backend: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._options = options or ("--artifacts-destination", str(folder / "artifacts"))
        self._backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self._backend, "--workers", "1", *self._options]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
        )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the MLflow server does not start"
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Wire:
    """A TCP relay to a server. It can be cut, go silent, or lose the answer to one request that was delivered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connected = True
        self.lose_answers_to: bytes | None = None
        self.lost_answers = 0
        self.refused = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if not self.connected:
                self.refused.set()
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server, selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                self._pump(client, ready)

    def _pump(self, client: socket.socket, ready: selectors.BaseSelector) -> None:
        losing = False
        while True:
            for key, _ in ready.select():
                source, sink = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                data = source.recv(1 << 16)
                wanted = self.lose_answers_to
                if source is client and wanted is not None and wanted in data:
                    losing = True
                if not data or not self.connected:
                    return
                if losing and source is not client:
                    self.lose_answers_to, self.lost_answers = None, self.lost_answers + 1
                    return
                sink.sendall(data)
