"""The way into Ray: lost clusters, a home that takes no files, and what Ray itself loses, each in one sentence."""

import socket
import time
from pathlib import Path

import pytest
import ray

from dira_dist.cluster import session
from dira_dist.cluster.session import cluster_at, embedded_ray, losses_explained
from dira_dist.config import JobFailedError, RequestError
from dira_dist.jobs.base import ResourcesConfig


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_gone_is_told_in_seconds(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = form.format(port=listener.getsockname()[1])
    began = time.monotonic()
    refused = pytest.raises(RequestError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there .*refused")
    with refused, cluster_at(address, f"RAY_ADDRESS={address}"):
        pass
    assert time.monotonic() - began < 30, "Ray itself waits for minutes"


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RayActorError(),
        ray.exceptions.ActorUnavailableError("The actor is unavailable", None),
        ray.exceptions.GetTimeoutError("no answer"),
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nlong\ndump"),
    ],
)
def test_what_ray_loses_is_one_sentence(error: Exception) -> None:
    with pytest.raises(JobFailedError) as caught, losses_explained("cxr"):
        raise error
    said = str(caught.value)
    assert said.startswith(f"cxr: the cluster, or a part of Ray that ran this job, was lost ({type(error).__name__}: ")
    assert said.endswith("run the same job again, and it goes on from its newest checkpoint") and "\n" not in said


def test_what_a_task_of_ours_raises_is_no_loss() -> None:
    own = ray.exceptions.RayTaskError("evaluate", "Traceback", ValueError("a fault"))
    with pytest.raises(ray.exceptions.RayTaskError), losses_explained("cxr"):
        raise own
    with pytest.raises(RequestError, match="seed"), losses_explained("cxr"):
        raise RequestError("seed: wrong")


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**settings: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(session.ray, "init", late)
    late_words = r"Ray did not start on this machine \(The current node timed out during startup\.\)"
    with pytest.raises(JobFailedError, match=late_words), embedded_ray(ResourcesConfig()):
        pass


def test_where_the_home_takes_no_files_an_embedded_ray_has_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("no folder")
    for home, own in ((tmp_path / "home", False), (tmp_path / "file", True), (Path("/proc/nobody"), True)):
        monkeypatch.setenv("HOME", str(home))
        assert bool(session._token_for_a_home_that_takes_none()) is own
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert session._token_for_a_home_that_takes_none() == {}
