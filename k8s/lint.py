"""Every kustomization rendered for a security linter, into a folder: python k8s/lint.py FOLDER.

Linters know Pods and Jobs, not Ray's kinds, so each pod template of a RayCluster or RayJob is written out as what
KubeRay makes of it. Needs kubectl and PyYAML.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parent


def ray_pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that KubeRay makes of a manifest."""
    spec = manifest.get("spec", {})
    if manifest["kind"] not in {"RayCluster", "RayJob"}:
        return
    cluster = spec.get("rayClusterSpec", spec)
    for number, group in enumerate((cluster["headGroupSpec"], *cluster["workerGroupSpecs"])):
        yield _named(manifest, str(number)) | {"kind": "Pod", "apiVersion": "v1", "spec": group["template"]["spec"]}
    if "submitterPodTemplate" in spec:
        template = {"template": spec["submitterPodTemplate"]}
        yield _named(manifest, "submitter") | {"kind": "Job", "apiVersion": "batch/v1", "spec": template}


def _named(manifest: dict[str, Any], part: str) -> dict[str, Any]:
    return {"metadata": {"name": f"{manifest['metadata']['name']}-{part}", "namespace": "dira"}}


def main() -> None:
    target = Path(sys.argv[1])
    # components patch what others make, and secrets come from files that are not in git
    files = [
        file
        for file in sorted(K8S.rglob("kustomization.yaml"))
        if file.relative_to(K8S).parts[0] not in {"components", "secrets"}
    ]
    for folder in (file.parent for file in files):
        command = ["kubectl", "kustomize", str(folder)]
        rendered = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        manifests = list(yaml.safe_load_all(rendered))
        pods = [pod for manifest in manifests for pod in ray_pods(manifest)]
        name = "-".join(folder.relative_to(K8S).parts)
        (target / f"{name}.yaml").write_text(yaml.safe_dump_all([*manifests, *pods]))


main()
