"""Manifests as kubectl renders them, and the schemas they are held against."""

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema.protocols import Validator

ROOT = Path(__file__).resolve().parents[2]
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def kustomize() -> Callable[[str], list[Manifest]]:
    """Renders a folder below k8s/; tests that need it skip where kubectl is absent."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine to render the overlays with")

    @cache
    def rendered(folder: str) -> str:
        command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return lambda folder: list(yaml.load_all(rendered(folder), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="session")
def kuberay() -> dict[str, Validator]:
    """Validators of KubeRay's kinds, closed: a field they do not know is an error, not passed over."""
    folder = ROOT.parent / "shared" / "kuberay"
    if not folder.is_dir():
        pytest.skip(f"no folder of KubeRay's CRDs at {folder}")
    validators: dict[str, Validator] = {}
    for file in folder.glob("*.yaml"):
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
        schema = json.loads(json.dumps(version["schema"]["openAPIV3Schema"]))
        schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
        validators[definition["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(_closed(schema))
    return validators


def _closed(schema: Any) -> Any:
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            return {"type": ["integer", "string"]}
        schema = {key: _closed(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
        return schema
    return [_closed(value) for value in schema] if isinstance(schema, list) else schema
