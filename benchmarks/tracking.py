"""What tracking costs the training loop: steps with it beside steps without, interleaved, in one run.

    python benchmarks/tracking.py [--steps 100] [--rounds 15] [--every 10]

The step is a convolution on one thread. As in a job, 20 figures are logged every 10 steps and a picture every 100. It
is recorded to

* nothing, twice: how far the two are apart is what this machine cannot tell;
* an sqlite database in this process;
* a real MLflow server in a process of its own;
* the same server behind a relay that holds every answer back for one second;
* an address where nobody listens;
* a server that takes the connection and never answers.

Ratios are medians over the rounds of each round's time to that of the first "nothing" in it. ``thread`` is the CPU
time of the loop's own thread, which other work on the machine hardly touches; ``wall`` is what a training waits.
"""

import argparse
import logging
import multiprocessing
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.protocol import NullRun
from dira_dist.tracking.run import TrackingRun

FIGURES = {f"train/{number}": float(number) for number in range(20)}
PICTURE = np.random.default_rng(0).integers(0, 256, (608, 1576, 3), dtype=np.uint8)
PICTURE_EVERY_STEPS = 100
DELAY_S = 1.0


def loop_s(
    run: Any, first: int, steps: int, every: int, images: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """Wall seconds and the thread's CPU seconds for so many steps."""
    wall, thread = time.perf_counter(), time.thread_time()
    for step in range(first, first + steps):
        torch.nn.functional.conv2d(*images, padding=1)
        if step % every == 0:
            run.log_metrics(FIGURES, step)
        if step % PICTURE_EVERY_STEPS == 0:
            run.log_picture("restorations", PICTURE, step)
    return time.perf_counter() - wall, time.thread_time() - thread


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of a real server."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    silent = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=silent, stderr=silent)
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def relay(port: int, server_port: int) -> None:
    """Hands requests on at once and answers after a second."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_pump, args=(client, server_port), daemon=True).start()


def _pump(client: socket.socket, server_port: int) -> None:
    with client, suppress(OSError), socket.create_connection(("127.0.0.1", server_port)) as server:
        ready = selectors.DefaultSelector()
        ready.register(client, selectors.EVENT_READ, server)
        ready.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in ready.select():
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                if not data:
                    return
                if key.fileobj is server:
                    time.sleep(DELAY_S)
                key.data.sendall(data)


@contextmanager
def recorders(folder: Path) -> Iterator[dict[str, Any]]:
    """Runs by where they are recorded."""
    slow_port = free_port()

    def on(uri: str) -> TrackingRun:
        return TrackingRun.create(TrackingConfig(uri=uri), "benchmark", {})

    with mlflow_server(folder) as port, socket.create_server(("127.0.0.1", 0)) as silent:
        slow = multiprocessing.get_context("spawn").Process(target=relay, args=(slow_port, port), daemon=True)
        slow.start()
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", slow_port)).close()
                break
        nobody = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
        dumb = TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        yield {
            "nothing": NullRun(),
            "nothing again": NullRun(),
            "sqlite in this process": on(f"sqlite:///{folder}/own.db"),
            "a server": on(f"http://127.0.0.1:{port}"),
            "a server that takes 1 s": on(f"http://127.0.0.1:{slow_port}"),
            "an address where nobody listens": TrackingRun.attach(nobody, "0" * 32),
            "a server that never answers": TrackingRun.attach(dumb, "0" * 32),
        }
        slow.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    logging.getLogger("dira_dist").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    images = torch.rand(8, 32, 96, 96), torch.rand(64, 32, 3, 3)
    with tempfile.TemporaryDirectory() as folder, recorders(Path(folder)) as runs:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(arguments.rounds):
            for name in np.random.default_rng(turn).permutation(list(runs)):
                first = turn * arguments.steps
                times[name].append(loop_s(runs[name], first, arguments.steps, arguments.every, images))
        report(times, arguments.steps)


def report(times: dict[str, list[tuple[float, float]]], steps: int) -> None:
    base = times["nothing"]
    print(f"{statistics.median(wall for wall, _ in base) / steps * 1000:.1f} ms per step without tracking")
    print(f"{'recorded to':34}{'wall':>8}{'thread':>8}")
    for name, found in times.items():
        ratios = [
            statistics.median(own[kind] / ref[kind] for own, ref in zip(found, base, strict=True)) for kind in (0, 1)
        ]
        print(f"{name:34}{ratios[0]:8.3f}{ratios[1]:8.3f}")


if __name__ == "__main__":
    main()
