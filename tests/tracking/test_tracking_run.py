"""One run per job: what is recorded arrives once and in order, whatever happens in between."""

import json
import logging
import queue
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.tracking import provenance
from dira_dist.tracking.config import TrackingConfig, page_command
from dira_dist.tracking.logged_models import checkpoints_of
from dira_dist.tracking.protocol import NullRun, Run
from dira_dist.tracking.provenance import git_commit, host_row
from dira_dist.tracking.run import TrackingRun, open_run
from dira_dist.tracking.server import ask
from dira_dist.tracking.system import SystemMonitor

WAIT_S = 60


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(int(m.step), m.value) for m in client.get_metric_history(run_id, name)]


@pytest.fixture
def client(mlflow_server: Any) -> MlflowClient:
    return MlflowClient(mlflow_server.uri)


def over(wire: Any, config: TrackingConfig) -> TrackingConfig:
    return config.model_copy(update={"uri": wire.uri})


def test_parameters_are_flattened_in_batches_and_kept_whole_beside(
    server_config: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    params = {"many": {f"key{i}": i for i in range(250)}, "stages": [{"objective": "di"}], "long": "x" * 9000}
    run = TrackingRun.create(server_config, "job-1", params, {"dira.job": "job-1"})
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    stored = client.get_run(run.run_id).data
    assert stored.params["many.key249"] == "249"
    assert stored.params["stages.0.objective"] == "di"
    assert len(stored.params) == 252
    assert len(stored.params["long"]) <= 6000
    assert "parameters.json" in stored.params["long"]
    assert stored.tags["dira.job"] == "job-1"
    file = client.download_artifacts(run.run_id, "parameters.json", str(tmp_path))
    assert json.loads(Path(file).read_text()) == params


def test_an_outage_delays_and_neither_loses_nor_doubles_nor_reorders(
    server_config: TrackingConfig, client: MlflowClient, wire: Any
) -> None:
    run = TrackingRun.create(over(wire, server_config), "job", {})
    picture = np.zeros((40, 60, 3), np.uint8)
    for step in range(10):
        run.log_metrics({"loss": 1.0 / (step + 1), "rate": float(step)}, step)
    assert run.flush(WAIT_S)
    wire.connected = False
    for step in range(10, 30):
        run.log_metrics({"loss": 1.0 / (step + 1), "rate": float(step)}, step)
    run.log_picture("di/grid", picture, 20)
    run.log_text("note", "notes/a.txt")
    assert not run.flush(0.5)
    wire.connected = True
    for step in range(30, 40):
        run.log_metrics({"loss": 1.0 / (step + 1), "rate": float(step)}, step)
    assert run.flush(WAIT_S)
    assert history(client, run.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(40)]
    assert history(client, run.run_id, "rate") == [(step, float(step)) for step in range(40)]
    times = [metric.timestamp for metric in client.get_metric_history(run.run_id, "loss")]
    assert times == sorted(times)
    assert len(client.list_artifacts(run.run_id, "images")) == 2  # the picture and its thumbnail
    assert [file.path for file in client.list_artifacts(run.run_id, "notes")] == ["notes/a.txt"]
    assert run.lost == 0


def test_a_delivery_whose_answer_is_lost_counts_once(
    server_config: TrackingConfig, client: MlflowClient, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the repetition is ours to make
    run = TrackingRun.create(over(wire, server_config), "job", {})
    assert run.flush(WAIT_S)
    wire.lose_answers_to = b"runs/log-batch"
    for step in range(5):
        run.log_metrics({"loss": 0.5}, step)
    assert run.flush(WAIT_S)
    assert wire.lost_answers == 1
    assert [step for step, _ in history(client, run.run_id, "loss")] == list(range(5))


def test_a_resumed_run_repeats_nothing_and_leaves_no_gap(server_config: TrackingConfig, client: MlflowClient) -> None:
    picture = np.zeros((20, 20), np.uint8)
    first = TrackingRun.create(server_config, "job", {})
    for step in range(11):
        first.log_metrics({"dir/loss": float(step)}, step)
        if step < 6:
            first.log_metrics({"probe/auroc": float(step)}, step)
    first.log_picture("grid", picture, 5)
    assert first.flush(WAIT_S)
    second = TrackingRun.attach(server_config, first.run_id)
    for step in range(4, 16):  # the steps since the last checkpoint are done again
        second.log_metrics({"dir/loss": float(step), "probe/auroc": float(step)}, step)
    second.log_metrics({"dira/loss": 1.0}, 3)  # another axis has its own beginning
    second.log_picture("grid", picture, 5)
    second.log_picture("grid", picture, 9)
    assert second.finish("FINISHED", timeout_s=WAIT_S)
    for name in ("dir/loss", "probe/auroc"):
        assert history(client, first.run_id, name) == [(step, float(step)) for step in range(16)]
    assert history(client, first.run_id, "dira/loss") == [(3, 1.0)]
    files = [file.path for file in client.list_artifacts(first.run_id, "images") if file.path.endswith(".png")]
    assert sorted(re.findall(r"\+step\+(\d+)\+", " ".join(files))) == ["5", "9"]


def test_what_an_outage_held_back_travels_in_the_checkpoint(
    server_config: TrackingConfig, client: MlflowClient, wire: Any
) -> None:
    run = TrackingRun.create(over(wire, server_config), "job", {})
    run.log_metrics({"loss": 0.0}, 0)
    assert run.flush(WAIT_S)
    wire.connected = False
    for step in range(1, 5):
        run.log_metrics({"loss": float(step)}, step)
    pending = json.loads(json.dumps(run.pending()))  # as a checkpoint keeps it; the process ends here
    assert len(pending) == 4
    resumed = TrackingRun.attach(server_config, run.run_id, pending)
    for step in range(5, 8):
        resumed.log_metrics({"loss": float(step)}, step)
    assert resumed.flush(WAIT_S)
    assert history(client, run.run_id, "loss") == [(step, float(step)) for step in range(8)]
    stored = {metric.step: metric.timestamp for metric in client.get_metric_history(run.run_id, "loss")}
    assert stored[1] == pending[0][3]  # when it was measured, not when it was delivered


_LOST_DRIVER = """
import sys
import numpy as np
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
uri, experiment, folder = sys.argv[1:]
config = TrackingConfig(uri=uri, experiment=experiment, system_metrics_every_s=0)
run = TrackingRun.create(config, "job", {}, folder=folder)
assert run.flush(60)
print(run.run_id, flush=True)
input()
run.log_text("name: job", "job.yaml")
run.log_table([{"host": "a"}], "hosts/step-0.json")
run.log_picture("grid", np.full((8, 6, 3), 7, np.uint8), 3)
run.log_dataset("train", "ab" * 32, "s3://store/images", "training", {"samples": 3})
run.log_checkpoint("s3://runs/a/step-5", 5, {"val/rankme": 2.0})
run.finish("FAILED", "no disk", timeout_s=600)
"""


def _run_of_a_lost_driver(config: TrackingConfig, wire: Any, folder: Path) -> str:
    """The MLflow run of a process that was killed while its server was away."""
    command = [sys.executable, "-c", _LOST_DRIVER, wire.uri, config.experiment, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        run_id = driver.stdout.readline().strip()
        assert run_id and not list(folder.rglob("*.json"))
        wire.connected = False
        driver.stdin.write("\n")
        driver.stdin.flush()
        until = time.monotonic() + WAIT_S
        while len(list(folder.rglob("*.json"))) < 5:
            assert time.monotonic() < until and driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    return run_id


def test_what_a_killed_driver_did_not_come_to_deliver_the_next_start_delivers(
    server_config: TrackingConfig, client: MlflowClient, wire: Any, tmp_path: Path
) -> None:
    run_id = _run_of_a_lost_driver(server_config, wire, tmp_path)
    beside = TrackingRun.attach(server_config, run_id, folder=str(tmp_path))  # a worker's: it takes up nothing
    assert beside.flush(WAIT_S)
    assert client.get_run(run_id).inputs.dataset_inputs == []
    run = TrackingRun.attach(server_config, run_id, folder=str(tmp_path), drives=True)
    assert run.flush(WAIT_S)
    stored = client.get_run(run_id)
    assert stored.inputs.dataset_inputs[0].dataset.digest == "ab" * 18
    assert (stored.info.status, stored.data.tags.get("dira.status_reason")) == ("RUNNING", None)
    assert {file.path for file in client.list_artifacts(run_id)} >= {"job.yaml", "hosts", "images"}
    picture = next(file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png"))
    with Image.open(client.download_artifacts(run_id, picture), formats=("PNG",)) as image:
        assert np.array_equal(np.asarray(image), np.full((8, 6, 3), 7))
    assert [found.step for found in checkpoints_of(client, run_id)] == [5]
    assert not (tmp_path / "outbox").exists()


def test_a_training_resumes_while_the_server_is_away(
    server_config: TrackingConfig, client: MlflowClient, wire: Any
) -> None:
    first = TrackingRun.create(over(wire, server_config), "job", {})
    first.log_metrics({"loss": 0.0}, 0)
    assert first.flush(WAIT_S)
    wire.connected = False
    second = TrackingRun.attach(over(wire, server_config), first.run_id)
    second.log_metrics({"loss": 0.0}, 0)
    second.log_metrics({"loss": 1.0}, 1)
    assert not second.flush(0.2)
    wire.connected = True
    assert second.flush(WAIT_S)
    assert history(client, first.run_id, "loss") == [(0, 0.0), (1, 1.0)]


def test_an_unknown_run_is_refused(server_config: TrackingConfig) -> None:
    with pytest.raises(RequestError, match="0123456789abcdef"):
        TrackingRun.attach(server_config, "0123456789abcdef0123456789abcdef")


def test_a_server_that_is_away_at_the_start_is_a_clear_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = TrackingConfig(uri=f"http://anna:geheim@127.0.0.1:{port}")
    with pytest.raises(RequestError) as refused:
        TrackingRun.create(config, "job", {})
    assert f"http://127.0.0.1:{port} cannot be reached" in str(refused.value)
    assert "start the server or correct the address" in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestError, match=r"no answer within 0\.3 s"):
            ask(uri, lambda: MlflowClient(uri).search_experiments(), timeout_s=0.3)


def test_no_secret_reaches_the_server_or_a_log(
    server_config: TrackingConfig, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, wire: Any
) -> None:
    secret = "s3://anna:geheim@store/images"
    caplog.set_level(logging.DEBUG, "dira_dist")
    run = TrackingRun.create(over(wire, server_config), "job", {"data": {"train": secret, "long": secret + "x" * 7000}})
    run.set_tags({"source": secret})
    run.log_dataset("train", "ab" * 32, secret, "training", {"samples": 3})
    run.log_checkpoint(secret, 5)
    wire.connected = False
    assert not run.flush(0.3)
    wire.connected = True
    assert run.finish("FAILED", f"cannot read {secret}", timeout_s=WAIT_S)
    stored = client.get_run(run.run_id)
    models = client.search_logged_models([stored.info.experiment_id])
    seen = [str(stored.to_dictionary()), *(str(model.to_dictionary()) for model in models), caplog.text, run.page]
    seen.append(Path(client.download_artifacts(run.run_id, "parameters.json", str(tmp_path))).read_text())
    assert "s3://store/images" in seen[0]
    assert not any("geheim" in text for text in seen)


def test_nothing_that_is_logged_stops_the_loop(server_config: TrackingConfig, client: MlflowClient) -> None:
    run = TrackingRun.create(server_config, "job", {})
    run.log_metrics({"good": 1.0, "bad": None, "worse": "x"}, 1)  # type: ignore[dict-item]
    run.log_metrics({"n" * 300: 1.0}, 1)
    run.log_metrics({"name with (brackets) and %": 2.0, "nan": float("nan"), "inf": float("inf")}, 1)
    assert run.flush(WAIT_S)
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["good"] == 1.0
    assert metrics["name with _brackets_ and _"] == 2.0
    assert np.isnan(metrics["nan"])
    assert run.lost == 3


def test_a_run_deleted_under_way_ends_quietly(server_config: TrackingConfig, client: MlflowClient) -> None:
    run = TrackingRun.create(server_config, "job", {})
    assert run.flush(WAIT_S)
    client.delete_run(run.run_id)
    for step in range(50):
        run.log_metrics({"loss": 0.0}, step)
    assert run.flush(WAIT_S)
    assert run.lost == 50
    with pytest.raises(RequestError, match="deleted"):
        TrackingRun.attach(server_config, run.run_id)


def test_the_status_says_how_it_ended_and_why(server_config: TrackingConfig, client: MlflowClient) -> None:
    run = TrackingRun.create(server_config, "job", {})
    assert run.finish("FAILED", "worker 3 ran out of memory", timeout_s=WAIT_S)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["dira.status_reason"]) == ("FAILED", "worker 3 ran out of memory")
    beside = TrackingRun.attach(server_config, run.run_id)  # by an evaluation, or a worker that is late
    beside.log_text("late", "late.txt")
    assert beside.flush(WAIT_S)
    assert client.get_run(run.run_id).info.status == "FAILED"
    again = TrackingRun.attach(server_config, run.run_id, drives=True)
    assert again.flush(WAIT_S)
    assert client.get_run(run.run_id).info.status == "RUNNING"
    assert again.finish("FINISHED", timeout_s=WAIT_S)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags.get("dira.status_reason")) == ("FINISHED", None)


def test_pictures_have_the_names_by_which_mlflow_shows_them(
    server_config: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    ours = TrackingRun.create(server_config, "ours", {})
    ours.log_picture("dira/grid", image, 7)
    assert ours.flush(WAIT_S)
    theirs = TrackingRun.create(server_config, "theirs", {})
    assert theirs.flush(WAIT_S)
    client.log_image(theirs.run_id, image, key="dira/grid", step=7)
    shapes = [
        sorted(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", re.sub(r"p\+\d+", "p+TIME", file.path)) for file in files)
        for files in (client.list_artifacts(run.run_id, "images") for run in (ours, theirs))
    ]
    assert shapes[0] == shapes[1]
    tags = [client.get_run(run.run_id).data.tags["mlflow.loggedImages"] for run in (ours, theirs)]
    assert tags[0] == tags[1]
    name = next(f.path for f in client.list_artifacts(ours.run_id, "images") if f.path.endswith(".png"))
    with Image.open(client.download_artifacts(ours.run_id, name, str(tmp_path))) as stored:
        assert np.array_equal(np.asarray(stored), image)


def test_datasets_and_checkpoints_are_tied_to_the_run(server_config: TrackingConfig, client: MlflowClient) -> None:
    run = TrackingRun.create(server_config, "job", {})
    run.log_dataset("train", "ab" * 32, "s3://bucket/train", "training", {"samples": 12})
    for _ in range(2):  # the same checkpoint reported again after a restart
        run.log_checkpoint("s3://bucket/run/step-5", 5, {"val/psnr": 21.0})
    run.log_checkpoint("s3://bucket/run/step-9", 9, {"val/psnr": 23.0})
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    stored = client.get_run(run.run_id)
    (entry,) = stored.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("train", ("ab" * 32)[:36])
    assert json.loads(entry.dataset.profile) == {"samples": 12}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    assert sorted(output.step for output in stored.outputs.model_outputs) == [5, 9]
    models = client.search_logged_models([stored.info.experiment_id])
    assert sorted(model.tags["dira.address"] for model in models) == [
        "s3://bucket/run/step-5",
        "s3://bucket/run/step-9",
    ]
    assert {metric.value for model in models for metric in model.metrics or []} == {21.0, 23.0}
    assert [metric.step for metric in client.get_metric_history(run.run_id, "val/psnr")] == [5, 9], "each once"
    assert [checkpoint.step for checkpoint in checkpoints_of(client, run.run_id)] == [9, 5]
    run.log_removal(5)
    run.log_removal(77)  # never recorded
    assert run.flush(WAIT_S)
    (kept,) = checkpoints_of(client, run.run_id)
    assert (kept.address, kept.step) == ("s3://bucket/run/step-9", 9)


def test_every_node_is_measured_where_it_is_asked_for(server_config: TrackingConfig, client: MlflowClient) -> None:
    found = {}
    for every_s in (0.0, 0.05):
        config = server_config.model_copy(update={"system_metrics_every_s": every_s})
        driver = TrackingRun.create(server_config, "job", {})
        node = TrackingRun.attach(config, driver.run_id)
        while every_s and not node.pending():  # until the first measurement
            time.sleep(every_s)
        assert node.finish("FINISHED", timeout_s=WAIT_S)
        found[every_s] = [n for n in client.get_run(driver.run_id).data.metrics if n.startswith("system/")]
    assert found[0.0] == []
    assert f"system/{socket.gethostname()}/cpu_utilization_percentage" in found[0.05]
    assert f"system/{socket.gethostname()}/network_receive_megabytes" in found[0.05]


def test_a_gpu_that_cannot_say_how_busy_it_is_keeps_its_other_figures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As under MIG. No machine of the tests has a GPU: this is NVML's interface, answering as it does there."""

    class NVMLError(Exception):
        pass

    def utilisation(device: int) -> Any:
        if device == 0:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=70)

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=utilisation,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    figures: queue.Queue[Mapping[str, float]] = queue.Queue()
    monitor = SystemMonitor(lambda numbers, _: figures.put(numbers), every_s=0.02, node="n")
    monitor.start()
    seen = [figures.get(timeout=WAIT_S) for _ in range(2)][-1]
    assert "system/n/cpu_utilization_percentage" in seen
    gpus = {name.removeprefix("system/n/"): value for name, value in seen.items() if "gpu" in name}
    assert gpus == {
        "gpu_0_memory_usage_megabytes": 2000,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_1_memory_usage_megabytes": 2000,
        "gpu_1_memory_usage_percentage": 25,
        "gpu_1_utilization_percentage": 70,
    }
    assert not caplog.records, "what a GPU does not have is no trouble"
    vars(nvml)["nvmlDeviceGetMemoryInfo"] = lambda device: 1 / 0
    while any("gpu" in name for name in seen):
        seen = figures.get(timeout=WAIT_S)
    assert "system/n/cpu_utilization_percentage" in seen, "the processor is measured on"
    figures.get(timeout=WAIT_S)
    monitor.stop()
    assert caplog.text.count("some system metrics are missing") == 1


def test_a_run_says_what_it_was_made_with(server_config: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    run = TrackingRun.create(server_config, "job", {})
    run.log_table([host_row(0, torch.device("cpu")), host_row(1, torch.device("cpu"))], "hosts/step-000000000.json")
    run.log_table([host_row(0, torch.device("cpu"))], "hosts/step-000000005.json")
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    tags = client.get_run(run.run_id).data.tags
    if (commit := tags.get("mlflow.source.git.commit")) is not None:  # none where the source is no repository
        subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=Path(__file__).parent, check=True)
        assert tags["dira.source_changed"] in ("true", "false")
    assert (commit is None) == (git_commit(Path(provenance.__file__).parent) is None)
    assert tags["version.torch"] == torch.__version__.partition("+")[0]
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [
        {"path": f"hosts/step-{step:09d}.json", "type": "table"} for step in (0, 5)
    ]
    table = json.loads(
        Path(client.download_artifacts(run.run_id, "hosts/step-000000000.json", str(tmp_path))).read_text()
    )
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    assert [(row["rank"], row["host"], row["device"]) for row in rows] == [
        (n, socket.gethostname(), "cpu") for n in (0, 1)
    ]
    assert rows[0]["memory_GB"] > 0.5


def test_a_folder_inside_of_somebody_elses_repository_has_no_commit(tmp_path: Path) -> None:
    package = tmp_path / "venv" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert git_commit(package) is None
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", tmp_path, *who, "commit", "-qm", "one"], check=True)
    found = git_commit(package)
    assert found is not None
    assert (len(found[0]), found[1]) == (40, False)
    (package / "__init__.py").write_text("changed = True")
    assert git_commit(package) == (found[0], True)


def test_a_run_that_lost_its_driver_before_it_was_named_is_deleted(
    server_config: TrackingConfig, client: MlflowClient
) -> None:
    def created(folder: str, loss: float | None = None, claimed: bool = False) -> str:
        run = TrackingRun.create(server_config, "job", {}, folder=folder)
        if loss is not None:
            run.log_metrics({"loss": loss}, 1)
        if claimed:
            run.claimed()
        assert run.flush(WAIT_S)
        return run.run_id

    claimed, elsewhere, lost = created("s3://u:p@b/a", claimed=True), created("s3://b/other's"), created("s3://u:p@b/a")
    with_figures = created("s3://u:p@b/a", loss=1.0)
    assert client.get_run(lost).info.lifecycle_stage == "deleted"
    now = open_run(server_config, "job", {}, folder="s3://u:p@b/a")
    alive = {claimed, elsewhere, with_figures, now.run_id}
    experiment = client.get_experiment_by_name(server_config.experiment)
    assert experiment is not None
    assert {run.info.run_id for run in client.search_runs([experiment.experiment_id])} == alive


def test_a_deleted_experiment_is_named(server_config: TrackingConfig, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment(server_config.experiment))
    with pytest.raises(RequestError, match=r"is deleted .* restore it"):
        TrackingRun.create(server_config, "job", {})


def test_sqlite_keeps_its_artifacts_beside_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri="sqlite:///runs/mlflow.db", system_metrics_every_s=0)
    run = open_run(config, "job", {"a": 1})
    run.log_text("hello", "hello.txt")
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    monkeypatch.chdir("/")  # a worker elsewhere gets the resolved address
    assert [path.read_text() for path in tmp_path.glob("runs/mlflow-artifacts/**/hello.txt")] == ["hello"]
    assert not (tmp_path / "mlruns").exists()


def test_without_an_address_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = open_run(TrackingConfig(), "job", {})
    assert isinstance(run, NullRun)
    run.log_metrics({"loss": 1.0}, 1)
    assert run.finish("FINISHED")
    recorded: Run = run
    assert (recorded.run_id, recorded.page, recorded.lost, recorded.pending()) == ("", "", 0, [])
    public = {name for name in vars(TrackingRun) if not name.startswith("_")} - {"create", "attach"}
    assert public <= {name for name in vars(NullRun) if not name.startswith("_")}


def test_the_environment_gives_the_address_where_the_job_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert TrackingConfig().resolve_paths().uri == "http://tracker:5000"
    assert TrackingConfig(uri="http://other:5000").resolve_paths().uri == "http://other:5000"


@pytest.mark.parametrize(("uri", "word"), [("mlruns", "sqlite:"), ("ftp://host", "http:"), ("file:///runs", "sqlite:")])
def test_an_address_of_another_kind_is_refused_with_the_kinds_allowed(uri: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        TrackingConfig(uri=uri)


def test_a_model_name_that_no_address_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="register_as"):
        TrackingConfig(register_as="my/model")


def test_the_command_that_opens_the_page_holds_no_password() -> None:
    assert page_command(TrackingConfig(uri="http://a:b@host:5000")) == "http://host:5000"
    command = page_command(TrackingConfig(uri="postgresql://a:b@host/mlflow"))
    assert command == "mlflow ui --backend-store-uri postgresql://host/mlflow"
    command = page_command(TrackingConfig(uri="sqlite:////home/anna/my runs/mlflow.db"))
    assert command == "mlflow ui --backend-store-uri 'sqlite:////home/anna/my runs/mlflow.db'"
