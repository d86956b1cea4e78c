"""What tracking costs the training loop: steps with it beside steps without, in one run, interleaved.

    python benchmarks/tracking.py [--steps 50] [--rounds 9]

The step is a convolution of about 20 ms; 20 figures are logged after every step, ten times as often as a job does.
Recorded to: nothing; an sqlite database in this process; a server that takes the connection and never answers.
"""

import argparse
import logging
import socket
import statistics
import tempfile
import time
from typing import Any

import torch

from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import NullRun, TrackingRun

FIGURES = {f"loss/{number}": float(number) for number in range(20)}


def loop_s(run: Any, first: int, steps: int, image: torch.Tensor, weight: torch.Tensor) -> float:
    """Seconds for so many steps."""
    start = time.perf_counter()
    for step in range(first, first + steps):
        torch.nn.functional.conv2d(image, weight, padding=1)
        run.log_metrics(FIGURES, step)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.getLogger("dira_dist").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    image, weight = torch.rand(8, 32, 96, 96), torch.rand(64, 32, 3, 3)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as silent:
        database = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        nobody = TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        runs: dict[str, Any] = {
            "nothing": NullRun(),
            "sqlite in this process": TrackingRun.create(database, "benchmark", {}),
            "a server that never answers": TrackingRun.attach(nobody, "0" * 32),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.rounds):
            for name, run in runs.items():
                times[name].append(loop_s(run, turn * arguments.steps, arguments.steps, image, weight))
        base = statistics.median(times["nothing"])
        print(f"{base / arguments.steps * 1000:.1f} ms per step without tracking")
        for name, seconds in times.items():
            print(f"{statistics.median(seconds) / base:6.3f} x  {name}")
        runs["sqlite in this process"].finish("FINISHED")


if __name__ == "__main__":
    main()
