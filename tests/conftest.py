"""What the tests of every floor share: the real S3 server, the folder of real images, single-threaded arithmetic."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import torch

torch.set_num_threads(1)
# An MLflow server starts ten processes for jobs that nothing here asks of it, and leaves them behind when it is killed.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, files that may take longest come first: else one process does the last of them alone."""
    if not hasattr(config, "workerinput"):
        return
    longest_s: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest_s[item.path] = max(longest_s[item.path], mark.args[0] if mark else 0.0)
    items.sort(key=lambda item: -longest_s[item.path])


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and one empty bucket on it."""

    endpoint: str
    bucket: str

    def address(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's S3 server, spoken to over HTTP on a free loopback port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Server:
    """A bucket of the test's own on the real server, and the environment that points every client at it."""
    for key, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    bucket = f"bucket-{abs(hash(request.node.nodeid)):x}-{os.getpid()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Server(s3_endpoint, bucket)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real medical images beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder of real images at {folder}")
    return folder
