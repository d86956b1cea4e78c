"""A real MLflow server for the tests of this folder, and environments that hold little."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from mlflow_server import MlflowServer, Wire
from packaging.requirements import Requirement

from dira_dist.tracking.config import TrackingConfig


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for the whole session; tests use an experiment or a model name of their own."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def wire(mlflow_server: MlflowServer) -> Iterator[Wire]:
    """A wire of the test's own to the session's server."""
    relay = Wire(mlflow_server.port)
    yield relay
    relay.close()


@pytest.fixture
def server_config(mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> TrackingConfig:
    """Tracking on the session's server, with an experiment and a model name of the test's own."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return TrackingConfig(uri=mlflow_server.uri, experiment=name, register_as=name, system_metrics_every_s=0)


def bare_python(folder: Path, *requirements: str) -> Path:
    """A virtual environment with these packages and what they need, and nothing else; its interpreter.

    What is installed for the tests is linked into it, not copied: gigabytes in no time.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for each in closure(requirements):
        for place in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            link = packages / place
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(place))))
    return folder / "bin" / "python"


def closure(requirements: Iterable[str]) -> Iterator[Distribution]:
    """The distributions that these need, themselves included, with the extras that are asked for."""
    waiting, seen = [Requirement(each) for each in requirements], set()
    while waiting:
        wanted = waiting.pop()
        extras = {"", *wanted.extras}
        if (wanted.name, *sorted(extras)) in seen:
            continue
        seen.add((wanted.name, *sorted(extras)))
        found = distribution(wanted.name)
        yield found
        needed = [Requirement(each) for each in found.requires or ()]
        waiting += [
            each
            for each in needed
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
