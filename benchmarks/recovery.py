"""What checkpoints and losses of machines cost, beside the plain way.

    python benchmarks/recovery.py blocked                # how long a checkpoint holds up the ResNet-50 step
    python benchmarks/recovery.py events                 # steps and seconds lost per event, on real Ray nodes here

The plain way saves in line every so many steps and starts from that again, whatever happens: that is this project with
its writer's thread waited for, and without its watch over Ray Train's controller.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.cluster_utils import Cluster

import dira_dist
from dira_dist.cluster.fit import trainer
from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient, start_coordinator
from dira_dist.cluster.fit.preemption import ControllerWatch
from dira_dist.cluster.session import embedded_ray
from dira_dist.data.store import open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import load_job
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.checkpoints import CheckpointFolder, CheckpointWriter
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint
from dira_dist.views import Views

INTERVAL_STEPS = 50
NODE_STORE_BYTES = 80 * 2**20
NOTICE_S = 60


def views(batch: int, size_px: int, seed: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(batch, 1, size_px, size_px, generator=generator) for _ in range(3)]
    return Views(draw[0], draw[1], draw[2], torch.arange(batch))


def blocked(rounds: int, batch: int, size_px: int, storage: str) -> None:
    """The share of the wall time that the loop waits for checkpoints, at one checkpoint every 50 steps."""
    networks = build_networks(UNetConfig(encoder="resnet50", in_channels=1), MoCoV2Config(), seed=0)
    step = pretrain_step(networks, "dira", total_steps=10_000)
    writer = CheckpointWriter(CheckpointFolder(open_store(storage)), keep=1)
    alone_s, beside_s, put_s, in_line_s = [], [], [], []
    done = 0

    def one_step() -> float:
        nonlocal done
        given = views(batch, size_px, done)
        began = time.perf_counter()
        step(given, done)
        done += 1
        return time.perf_counter() - began

    def save() -> float:
        began = time.perf_counter()
        writer.put(Checkpoint(Position(0, done, done, done * batch), {}, tensors=step.state_dict()))
        return time.perf_counter() - began

    one_step()
    for _ in range(rounds):
        alone_s.append(one_step())
        put_s.append(save())
        beside_s.append(one_step())
        writer.drain(600)
        began = time.perf_counter()
        save()
        writer.drain(600)
        in_line_s.append(time.perf_counter() - began)
    writer.close()
    print(f"ResNet-50, batch {batch}, {size_px} px, storage {storage.partition('://')[0]}: medians of {rounds} rounds")
    alone, beside = statistics.median(alone_s), statistics.median(beside_s)
    interval_s = INTERVAL_STEPS * alone
    print(f"  step {alone:.3f} s; the step beside the writer {beside / alone:.2f}x that")
    for name, cost in (("beside the training", put_s), ("in line", in_line_s)):
        held = statistics.median(cost)
        print(f"  {name:20} {held:7.3f} s per checkpoint, {held / (interval_s + held):.2%} of the wall time")


@dataclass
class Trial:
    """One run, and one thing that happens to it.

    Attributes:
        lost_steps: steps that were done again.
        lost_s: seconds between the last figure before and the first new step after it.
    """

    name: str
    lost_steps: list[int] = field(default_factory=list)
    lost_s: list[float] = field(default_factory=list)


def job_in(folder: Path, name: str, steps: int, workers: str) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"train": str(folder / "shards"), "image_size": 32, "global_batch": 8, "loader_workers": 0},
        "model": {"encoder": "tu-test_resnet"},
        "method": {"queue_size": 64},
        "stages": [{"objective": "dira", "steps": steps}],
        "precision": "fp32",
        "resources": {"workers": json.loads(workers), "resize_every_s": 5},
        "checkpoint": {"storage": str(folder / "runs"), "every_steps": INTERVAL_STEPS, "keep": 2},
        "tracking": {"uri": f"sqlite:///{folder / name}.db", "log_every_steps": 1, "system_metrics_every_s": 0},
    }


class Watch:
    """Sees every figure that reaches the coordinator, on the wall clock."""

    def __init__(self, at_step: int, act: Callable[[], object]) -> None:
        self._at_step, self._act = at_step, act
        self.seen: list[tuple[float, int]] = []
        self._acted_s: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread()

    def follow(self, coordinator: CoordinatorClient) -> CoordinatorClient:
        self._thread = threading.Thread(target=self._run, args=(coordinator,))
        self._thread.start()
        return coordinator

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self, coordinator: CoordinatorClient) -> None:
        while not self._ended.is_set():
            step = coordinator.call(Coordinator.read).step
            if not self.seen or self.seen[-1][1] != step:
                self.seen.append((time.monotonic(), step))
            if self._acted_s is None and step >= self._at_step:
                self._act()
                self._acted_s = time.monotonic()
            time.sleep(0.02)

    def lost(self) -> tuple[int, float]:
        """Steps done again, and the seconds from the last new step before the restart to the next new one after it."""
        assert self._acted_s is not None
        furthest, again, gap_s, newest_s = 0, 0, 0.0, 0.0
        for at_s, step in self.seen:
            if at_s > self._acted_s and step <= furthest:
                again = max(again, furthest - step + 1)
            elif step > furthest:
                if at_s > self._acted_s:
                    gap_s = max(gap_s, at_s - newest_s)
                furthest, newest_s = step, at_s
        return again, gap_s


def run(folder: Path, name: str, workers: str, act: Callable[[], object], steps: int) -> tuple[int, float]:
    watch = Watch(INTERVAL_STEPS + 35, act)
    vars(trainer)["start_coordinator"] = lambda stall_s: watch.follow(start_coordinator(stall_s))
    try:
        dira_dist.run(load_job(job_in(folder, name, steps, workers)))
    finally:
        vars(trainer)["start_coordinator"] = start_coordinator
        watch.end()
    return watch.lost()


def kill_a_worker() -> None:
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    workers[-1].kill()


def drain_a_busy_node(cluster: Cluster, nodes: list[Any]) -> None:
    free = ray._private.state.available_resources_per_node()
    busy = next(node.node_id for node in nodes if free[node.node_id].get("CPU", 0) < 1)
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    command += ["--node-id", busy, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S)], check=True, capture_output=True)


def events(rounds: int) -> None:
    """Steps and seconds that a killed worker and a preempted node cost, with the watch and without."""
    trials = {name: Trial(name) for name in ("worker killed", "node preempted", "node preempted, the plain way")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_archive(folder / "archive", 40, size_px=40)
        options = dira_dist.ShardOptions(image_size=None, processes=1)
        dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
        for number in range(rounds):
            with embedded_ray(ResourcesConfig(workers=2)):
                note(trials["worker killed"], run(folder, f"killed-{number}", "2", kill_a_worker, 140))
            for plain in (False, True):
                name = "node preempted, the plain way" if plain else "node preempted"
                note(trials[name], preempted(folder, f"preempted-{number}-{plain}", plain))
    print(f"a checkpoint every {INTERVAL_STEPS} steps, the event {35} steps after one, {rounds} rounds; medians")
    for trial in trials.values():
        print(
            f"  {trial.name:32} {statistics.median(trial.lost_steps):4.0f} steps done again, "
            f"{statistics.median(trial.lost_s):5.1f} s without a new step"
        )


def note(trial: Trial, lost: tuple[int, float]) -> None:
    trial.lost_steps.append(lost[0])
    trial.lost_s.append(lost[1])


def preempted(folder: Path, name: str, plain: bool) -> tuple[int, float]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": NODE_STORE_BYTES})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=NODE_STORE_BYTES) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        if plain:
            vars(trainer)["ControllerWatch"] = BlindWatch
        return run(folder, name, "2", lambda: drain_a_busy_node(cluster, nodes), 800 if plain else 140)
    finally:
        vars(trainer)["ControllerWatch"] = ControllerWatch
        ray.shutdown()
        cluster.shutdown()


class BlindWatch(ControllerWatch):
    """Tells the workers nothing."""

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None: ...


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["blocked", "events"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--storage", help="folder or s3:// prefix for `blocked`; a temporary folder where left out")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ray {ray.__version__}")
    if arguments.what == "events":
        events(arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as here:
            blocked(arguments.rounds, arguments.batch, arguments.size_px, arguments.storage or here)
