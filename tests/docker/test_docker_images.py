"""Dockerfiles and the compose file: linted, pinned, and agreeing with the project. `make image-test` builds and runs
them; this is what can be held without that.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "mlflow.Dockerfile"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def instructions(file: Path) -> list[str]:
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_the_linter_has_nothing_to_say(file: Path) -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_say_it(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install mlflow\n")
    done = subprocess.run([Path(sys.executable).parent / "hadolint", bad], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert {"DL3007", "DL3042"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_as_somebody_check_themselves_and_hold_no_secret(file: Path) -> None:
    lines = instructions(file)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert lines[0].startswith("ARG BASE_IMAGE=")
    assert lines[1] == "FROM ${BASE_IMAGE}"
    for line in lines:
        if line.startswith(("ENV", "ARG")):
            assert not re.search(r"(?i)(token|secret|password)", line)
        if " pip install " in line and "--no-deps" not in line:
            assert "--constraint" in line


# A tag that begins with a version, or a digest behind it.
PINNED_BASE = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_base_has_a_version_and_takes_a_digest(file: Path) -> None:
    (base,) = [
        line.removeprefix("ARG BASE_IMAGE=") for line in instructions(file) if line.startswith("ARG BASE_IMAGE=")
    ]
    assert PINNED_BASE.fullmatch(base), base
    assert PINNED_BASE.fullmatch(f"{base.partition('@')[0]}@sha256:{'0' * 64}")
    for loose in (base.partition(":")[0], f"{base.partition(':')[0]}:latest", "rayproject/ray:nightly-py311"):
        assert not PINNED_BASE.fullmatch(loose), loose


def test_the_image_has_the_projects_requirements_and_nothing_else() -> None:
    command = [sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "local"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed == project["dependencies"] + project["optional-dependencies"]["local"]


def test_everything_an_instruction_copies_is_in_the_context() -> None:
    """The ignore file lets in what it names, so what it does not name must not be asked for."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*"
    assert {"dira_dist", "jobs"} <= let_in
    assert not {"tests", ".git", "docker", "k8s"} & let_in
    assert all((ROOT / name).exists() for name in let_in)
    asked = {source for file in DOCKERFILES for source in re.findall(r"source=([\w./]+)", file.read_text())}
    assert asked <= let_in
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= let_in


def test_the_mlflow_server_is_the_jobs_mlflow() -> None:
    (install,) = (line for line in instructions(DOCKER / "mlflow.Dockerfile") if "pip install" in line)
    words = install.split()
    assert {"mlflow", "boto3"} <= set(words)
    assert all(name in PINS or "==" in name for name in words[words.index("mlflow") :])


def test_compose_waits_for_what_is_healthy_and_pins_what_it_pulls(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"postgres", "s3", "mlflow", "ray-head", "ray-worker"} <= services.keys()
    assert services["ray-worker"]["deploy"]["replicas"] == 2
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), name
        for other, condition in service.get("depends_on", {}).items():
            checked = "healthcheck" in services[other] or "build" in services[other]  # our images check themselves
            assert condition["condition"] == "service_completed_successfully" or checked, (name, other)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens to everybody"
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_compose_takes_every_secret_from_the_environment(compose: dict[str, Any]) -> None:
    text = (DOCKER / "compose.yaml").read_text()
    examples = re.findall(r"^#? ?([A-Z_]+)=", (DOCKER / ".env.example").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) == set(examples)
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", name):
                assert value.startswith("${"), name
    assert compose["services"]["ray-head"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_secrets_are_kept_out_of_git() -> None:
    for name in ("docker/.env", "k8s/secrets/s3.env", "k8s/secrets/postgres.env"):
        asked = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert asked.returncode in (0, 128), f"{name} is not ignored"  # 128: this is no checkout
