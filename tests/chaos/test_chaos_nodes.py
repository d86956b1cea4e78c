"""Nodes that are lost, taken away with notice, or added, and a driver that is lost, on several Ray nodes here."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import ray
from chaos import ChaosJob, driver_of, when, worker_processes
from flaky_s3 import flaky_s3
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.timeout(1500)

OBJECT_STORE_BYTES = 80 * 2**20
DEADLINE_S = 60
SLOW_S = 3.0


@pytest.fixture
def slow_storage() -> Iterator[str]:
    """Takes seconds for what a worker has saved, as for a large network."""
    with flaky_s3("runs") as server:
        server.slow_s = SLOW_S
        yield "s3://runs/here"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, where the driver is, as on Kubernetes; tests add nodes of one CPU."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Cluster) -> object:
    return cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)


def drain(cluster: Cluster, node_id: str) -> None:
    """What a spot machine's notice becomes: the node is to be gone after a deadline."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(DEADLINE_S)], check=True, capture_output=True)


def test_a_drained_node_costs_no_step(slow_storage: str, cluster: Cluster, make_job: Callable[..., ChaosJob]) -> None:
    nodes = [add_node(cluster) for _ in range(3)]
    job = make_job("drained", workers="2", steps=200, every_steps=1000, storage=slow_storage)
    busy: list[str] = []

    def drain_a_busy_node() -> None:
        available = ray._private.state.available_resources_per_node()
        busy.extend(node.node_id for node in nodes if available[node.node_id].get("CPU", 0) < 1)
        drain(cluster, busy[0])

    with when(lambda: job.has_measured(20), drain_a_busy_node):
        job.run("resources.max_failures=0")  # a preemption is no failure
    job.assert_whole()
    assert job.setbacks() == (1, 0), "no checkpoint was due: what was saved, was saved for the drain"


def test_a_run_shrinks_with_lost_nodes_and_grows_with_new_ones(
    cluster: Cluster, make_job: Callable[..., ChaosJob]
) -> None:
    nodes = [add_node(cluster) for _ in range(4)]
    job = make_job("elastic", workers="[2, 4]", steps=250, every_steps=10)
    with ThreadPoolExecutor(1) as aside:  # nodes can be added in the main thread only
        running = aside.submit(job.run)
        wait_until(lambda: job.has_reached(20), running)
        for node in nodes[:2]:
            cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: workers_of(job) == 2, running)
        with standing_still():
            for _ in range(2):
                add_node(cluster)
        running.result()
    job.assert_whole()
    restarts, again = job.setbacks()
    assert restarts > 1 and again < 20, "a sudden loss costs less than two intervals"
    totals = {value for _, value in job.history("train/steps_done_again")}
    assert totals <= {0, again}, "a planned resize costs nothing"
    counts = [int(value) for _, value in job.history("train/workers")]
    assert counts[0] == 4 and 2 in counts and counts[-1] == 4, counts


def test_a_killed_driver_leaves_the_cluster_to_the_next(
    cluster: Cluster, make_job: Callable[..., ChaosJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        add_node(cluster)
    job = make_job("left-alone", steps=60)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with driver_of(job, lambda: job.has_reached(14)) as driver:
        driver.kill()
        driver.wait()
        job.run()  # at once, on the cluster that lives on
    job.assert_whole()
    assert job.mlflow_run().info.status == "FINISHED"


@contextmanager
def standing_still() -> Iterator[None]:
    """Workers do nothing while the block runs, so that a small job does not end while Ray is busy with nodes."""
    workers = worker_processes()
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def wait_until(condition: Callable[[], bool], running: Future[object]) -> None:
    while not condition():
        assert not running.done(), "the run ended before that"
        time.sleep(0.2)


def workers_of(job: ChaosJob) -> int:
    counts = job.history("train/workers")
    return int(counts[-1][1]) if counts else 0
