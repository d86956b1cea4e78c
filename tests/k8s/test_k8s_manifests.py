"""Every overlay rendered, held against the schemas, and held to what the manifests promise one another."""

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import pytest
import yaml
from jsonschema.protocols import Validator
from typer.testing import CliRunner

from dira_dist.cli import app
from dira_dist.cluster.submit.kubernetes import STANDING, render
from dira_dist.cluster.submit.pods import DRAIN_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
APART = ["cluster", "tracking", "database", "monitoring"]  # applied by themselves
PLATFORMS = ["base", "overlays/gpu", "overlays/spot", "overlays/kueue", "overlays/smoke"]
JOBS = ["base/pretrain", "overlays/gpu/pretrain", "overlays/spot/pretrain", "overlays/kueue/pretrain"]
JOBS += ["base/search", "overlays/gpu/search", "overlays/kueue/search"]
JOBS += [
    "base/shard",
    *(f"{place}/{verb}" for place in ("base", "overlays/gpu") for verb in ("predict", "embed", "evaluate")),
]
EVERYTHING = APART + PLATFORMS + JOBS
KUBERNETES = "1.33"
OTHER_OPERATORS = {"PodMonitor", "ResourceFlavor", "ClusterQueue", "LocalQueue"}  # their schemas are not here

Manifest = dict[str, Any]
Kustomize = Callable[[str], list[Manifest]]


class Pod(NamedTuple):
    where: str
    template: Manifest

    @property
    def spec(self) -> Manifest:
        found: Manifest = self.template["spec"]
        return found

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def cluster_of(manifest: Manifest) -> Manifest | None:
    """The spec of a Ray cluster, wherever it stands."""
    if manifest["kind"] == "RayCluster":
        return dict(manifest["spec"])
    return dict(manifest["spec"]["rayClusterSpec"]) if manifest["kind"] == "RayJob" else None


def groups_of(cluster: Manifest) -> list[Manifest]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods_of(manifests: list[Manifest]) -> Iterator[Pod]:
    for manifest in manifests:
        where = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if (cluster := cluster_of(manifest)) is not None:
            for group in groups_of(cluster):
                yield Pod(f"{where}/{group.get('groupName', 'head')}", group["template"])
        if manifest["kind"] == "RayJob":
            yield Pod(f"{where}/submitter", manifest["spec"]["submitterPodTemplate"])
        if manifest["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield Pod(where, manifest["spec"]["template"])


def walk(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def cpus(amount: str) -> float:
    return float(amount[:-1]) / 1000 if amount.endswith("m") else float(amount)


def memory_bytes(amount: str) -> int:
    return int(amount[:-2]) * {"Mi": 2**20, "Gi": 2**30}[amount[-2:]]


@pytest.fixture
def manifests(kustomize: Kustomize, folder: str) -> list[Manifest]:
    return kustomize(folder)


@pytest.mark.parametrize("folder", EVERYTHING)
def test_core_kinds_meet_the_kubernetes_schemas(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] not in OTHER_OPERATORS and manifest["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", EVERYTHING)
def test_ray_kinds_meet_their_definitions(manifests: list[Manifest], kuberay: dict[str, Validator]) -> None:
    for manifest in manifests:
        if manifest["apiVersion"] == "ray.io/v1":
            kuberay[manifest["kind"]].validate(manifest)


def test_the_closed_definitions_refuse_what_kubernetes_would_drop(
    kustomize: Kustomize, kuberay: dict[str, Validator]
) -> None:
    (job,) = (each for each in kustomize("base/pretrain") if each["kind"] == "RayJob")
    job["spec"]["backofLimit"] = 1
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        kuberay["RayJob"].validate(job)


@pytest.mark.parametrize("folder", EVERYTHING)
def test_pods_are_confined(manifests: list[Manifest]) -> None:
    for pod in pods_of(manifests):
        assert pod.spec["securityContext"]["runAsNonRoot"] is True, pod.where
        assert pod.spec["securityContext"]["runAsUser"] > 0, pod.where
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.where
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes", [])), pod.where
        for container in pod.containers:
            expected = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["securityContext"] == expected, (pod.where, container["name"])


@pytest.mark.parametrize("folder", EVERYTHING)
def test_only_an_autoscaler_talks_to_kubernetes(manifests: list[Manifest]) -> None:
    for pod in pods_of(manifests):
        owner = next(each for each in manifests if f"{each['kind']}/{each['metadata']['name']}" in pod.where)
        autoscaled = (cluster_of(owner) or {}).get("enableInTreeAutoscaling", False)
        assert pod.spec["automountServiceAccountToken"] is (autoscaled and pod.where.endswith("/head")), pod.where


@pytest.mark.parametrize("folder", EVERYTHING)
def test_images_are_pinned(manifests: list[Manifest]) -> None:
    images = [found["image"] for found in walk(manifests) if isinstance(found.get("image"), str)]
    for image in images:
        _, _, tag = image.rpartition("/")[2].partition(":")
        assert re.search(r"\d+\.\d+", tag), image


@pytest.mark.parametrize("folder", EVERYTHING)
def test_requests_and_limits_are_set(manifests: list[Manifest]) -> None:
    for pod in pods_of(manifests):
        for container in pod.containers:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], pod.where
            assert cpus(resources["requests"]["cpu"]) <= cpus(resources["limits"]["cpu"]), pod.where


@pytest.mark.parametrize("folder", EVERYTHING)
def test_servers_are_probed(manifests: list[Manifest]) -> None:
    for pod in pods_of(manifests):
        if not pod.where.endswith("/submitter"):
            for container in pod.spec["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), pod.where


@pytest.mark.parametrize("folder", EVERYTHING)
def test_ray_is_told_what_kubernetes_enforces(manifests: list[Manifest]) -> None:
    for cluster in filter(None, map(cluster_of, manifests)):
        for group in groups_of(cluster):
            head = "groupName" not in group
            spec, params = group["template"]["spec"], group["rayStartParams"]
            limits = spec["containers"][0]["resources"]["limits"]
            assert params["num-cpus"] == ("0" if head else limits["cpu"])
            assert params["num-gpus"] == limits.get("nvidia.com/gpu", "0")
            (shm,) = (volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm")
            assert shm["medium"] == "Memory"
            shm_bytes = memory_bytes(shm["sizeLimit"])
            assert int(params["object-store-memory"]) < shm_bytes
            assert int(params["memory"]) + shm_bytes == memory_bytes(limits["memory"])
            mounts = spec["containers"][0]["volumeMounts"]
            assert {"name": "shm", "mountPath": "/dev/shm"} in mounts


@pytest.mark.parametrize("folder", EVERYTHING)
def test_a_pod_is_given_longer_to_go_than_ray_drains(manifests: list[Manifest]) -> None:
    for cluster in filter(None, map(cluster_of, manifests)):
        for group in groups_of(cluster):
            spec = group["template"]["spec"]
            env = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
            drain_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert drain_s == DRAIN_TIMEOUT_S
            assert drain_s + 15 <= spec["terminationGracePeriodSeconds"] < 120


@pytest.mark.parametrize("folder", EVERYTHING)
def test_clusters_ask_for_a_token_and_run_the_pinned_ray(manifests: list[Manifest]) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for cluster in filter(None, map(cluster_of, manifests)):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == pins["ray"]


def test_images_have_the_ray_and_the_version_of_the_project() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-py311", dockerfile)) == {pins["ray"]}
    version = re.search(r'"(.+)"', (ROOT / "dira_dist" / "version.py").read_text().partition("=")[2])
    assert version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (each for each in project["dependencies"] if each.startswith("ray["))
    assert pins["ray"].rpartition(".")[0] in ray
    named = {
        tag
        for file in [*K8S.rglob("*.yaml"), *(ROOT / "docker").glob("*"), *(ROOT / "docs").glob("*.md")]
        for tag in re.findall(r"\bdira-(?:dist|mlflow):(\d[\w.]*)", file.read_text())
    }
    assert named == {version[1]}


@pytest.mark.parametrize("folder", EVERYTHING)
def test_everything_referred_to_exists(
    kustomize: Kustomize, manifests: list[Manifest], folder: str, tmp_path: Path
) -> None:
    shutil.copytree(K8S / "secrets", tmp_path / "secrets")
    for example in (tmp_path / "secrets").glob("*.example"):
        example.with_suffix("").write_text(example.read_text())
    standing = [*kustomize(str(tmp_path / "secrets")), *kustomize("base"), *manifests]
    keys = {
        (each["metadata"].get("namespace"), each["kind"], each["metadata"]["name"]): each.get("data", {}).keys()
        for each in standing
    }
    named = {"configMapRef": "ConfigMap", "secretRef": "Secret", "configMap": "ConfigMap"}
    for manifest in manifests:
        where = manifest["metadata"].get("namespace")
        for pod in pods_of([manifest]):
            assert (where, "ServiceAccount", pod.spec["serviceAccountName"]) in keys, pod.where
        for found in walk(manifest):
            for field, kind in named.items():
                if isinstance(found.get(field), dict):
                    assert (where, kind, found[field]["name"]) in keys, found
            if "secretName" in found:
                assert (where, "Secret", found["secretName"]) in keys or folder == "overlays/smoke", found
            if "secretKeyRef" in found:
                assert found["secretKeyRef"]["key"] in keys[where, "Secret", found["secretKeyRef"]["name"]], found


@pytest.mark.parametrize("folder", EVERYTHING)
def test_selectors_find_pods(kustomize: Kustomize, manifests: list[Manifest]) -> None:
    """Of policies, budgets, services and monitors; a job's pods stand beside the platform's."""
    labels = [pod.template["metadata"]["labels"] for pod in pods_of([*manifests, *kustomize("base/pretrain")])]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        chosen = spec.get("selector") if manifest["kind"] != "NetworkPolicy" else spec["podSelector"]
        if manifest["kind"] in {"NetworkPolicy", "PodDisruptionBudget", "Service", "PodMonitor", "Deployment"}:
            wanted = chosen if manifest["kind"] == "Service" else chosen.get("matchLabels", {})
            assert any(wanted.items() <= each.items() for each in labels), manifest["metadata"]["name"]
            for expression in chosen.get("matchExpressions", []):
                assert set(expression["values"]) == {each[expression["key"]] for each in labels} & set(
                    expression["values"]
                )


def test_every_pod_that_may_be_reached_is_under_a_policy_of_its_own(kustomize: Kustomize) -> None:
    manifests = kustomize("overlays/smoke")
    policies = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    assert any(policy["podSelector"] == {} and "ingress" not in policy for policy in policies)  # all else is closed
    for policy in policies:
        outside = [
            (peer, rule.get("ports"))
            for rule in policy.get("ingress", [])
            for peer in rule["from"]
            if "namespaceSelector" in peer
        ]
        for peer, ports in outside:  # from another namespace: one kind of pod, one port, never the GCS
            assert peer["podSelector"]["matchLabels"]
            assert [port["port"] for port in ports] in ([8265], [8080], [5000])


@pytest.mark.parametrize("overlay", ["gpu", "spot"])
def test_the_quota_holds_the_platform_grown_and_a_job(kustomize: Kustomize, overlay: str) -> None:
    platform = kustomize(f"overlays/{overlay}")
    (quota,) = (each["spec"]["hard"] for each in platform if each["kind"] == "ResourceQuota")
    wanted = {"limits.cpu": 0.0, "limits.memory": 0.0, "requests.nvidia.com/gpu": 0.0}
    for manifest in [*platform, *kustomize(f"overlays/{overlay}/pretrain")]:
        cluster = cluster_of(manifest)
        counts = [1, *(group["maxReplicas"] for group in cluster["workerGroupSpecs"])] if cluster else []
        for pod, count in zip(pods_of([manifest]), [*counts, 1], strict=False):
            for container in pod.spec["containers"]:
                limits = container["resources"]["limits"]
                wanted["limits.cpu"] += count * cpus(limits["cpu"])
                wanted["limits.memory"] += count * memory_bytes(limits["memory"])
                wanted["requests.nvidia.com/gpu"] += count * int(limits.get("nvidia.com/gpu", 0))
    assert wanted["limits.cpu"] <= float(quota["limits.cpu"])
    assert wanted["limits.memory"] <= memory_bytes(quota["limits.memory"])
    assert wanted["requests.nvidia.com/gpu"] <= int(quota["requests.nvidia.com/gpu"])


def test_the_gpu_overlay_gives_workers_gpus_and_keeps_the_head_off_them(kustomize: Kustomize) -> None:
    for folder in ("overlays/gpu", "overlays/gpu/pretrain"):
        (cluster,) = filter(None, map(cluster_of, kustomize(folder)))
        head, workers = groups_of(cluster)
        assert workers["rayStartParams"]["num-gpus"] == "1"
        assert workers["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert [each["key"] for each in workers["template"]["spec"]["tolerations"]] == ["nvidia.com/gpu"]
        assert not {"nodeSelector", "tolerations"} & head["template"]["spec"].keys()


def test_the_spot_overlay_is_elastic_with_its_head_on_demand(kustomize: Kustomize) -> None:
    for folder, low, high in (("overlays/spot", 0, 8), ("overlays/spot/pretrain", 2, 4)):
        (cluster,) = filter(None, map(cluster_of, kustomize(folder)))
        assert cluster["enableInTreeAutoscaling"]
        assert cluster["autoscalerOptions"]["version"] == "v2"
        head, workers = groups_of(cluster)
        assert (workers["minReplicas"], workers["maxReplicas"]) == (low, high)
        assert "replicas" not in workers  # the autoscaler's, whatever is applied again
        assert head["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
        assert workers["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
        assert "nvidia.com/gpu.present" in workers["template"]["spec"]["nodeSelector"]


def test_kueue_admits_jobs_that_it_can(kustomize: Kustomize) -> None:
    """Kueue refuses a RayJob that outlives its job, grows, or chooses a cluster."""
    platform, jobs = kustomize("overlays/kueue"), kustomize("overlays/kueue/pretrain")
    (queue,) = (each for each in platform if each["kind"] == "LocalQueue")
    (shared,) = (each for each in platform if each["kind"] == "ClusterQueue")
    (flavor,) = (each for each in platform if each["kind"] == "ResourceFlavor")
    (job,) = (each for each in jobs if each["kind"] == "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert queue["metadata"]["name"] == "default"  # where Kueue puts jobs that name no queue
    assert queue["spec"]["clusterQueue"] == shared["metadata"]["name"]
    (resources,) = shared["spec"]["resourceGroups"][0]["flavors"]
    assert resources["name"] == flavor["metadata"]["name"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert "clusterSelector" not in job["spec"]
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    assert not any(each["kind"] == "RayCluster" for each in platform)
    (quota,) = (each["spec"]["hard"] for each in platform if each["kind"] == "ResourceQuota")
    nominal = {each["name"]: each["nominalQuota"] for each in resources["resources"]}
    assert float(quota["requests.cpu"]) >= 2 * float(nominal["cpu"])
    assert memory_bytes(quota["requests.memory"]) >= 2 * memory_bytes(nominal["memory"])
    assert int(quota["requests.nvidia.com/gpu"]) >= 2 * int(nominal["nvidia.com/gpu"])


@pytest.mark.parametrize("file", sorted(K8S.rglob("rayjob.*.yaml")), ids=lambda file: str(file.relative_to(K8S)))
def test_rayjobs_are_what_the_command_in_them_prints(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command stands in the file's first lines, between backticks; it is read, not assumed."""
    monkeypatch.chdir(ROOT)
    comment = "".join(line.lstrip("# ") for line in file.read_text().splitlines(True) if line.startswith("#"))
    found = re.search(r"`dira-dist k8s (.+?)`", comment, re.DOTALL)
    assert found
    printed = CliRunner().invoke(app, ["k8s", *shlex.split(found[1].replace("\\\n", " "))])
    assert printed.exit_code == 0, printed.output
    assert file.read_text().endswith(printed.stdout)


def test_the_everyday_cluster_has_the_pods_that_a_job_has(kustomize: Kustomize) -> None:
    """But for the job's file, which it does not carry."""
    command = ["resources={workers: [1, 8], cpus_per_worker: 8}"]
    job = next(
        each for each in yaml.safe_load_all(render(ROOT / "jobs/pretrain.yaml", command)) if each["kind"] == "RayJob"
    )
    rendered = json.dumps(job["spec"]["rayClusterSpec"])
    name = job["metadata"]["name"]
    wanted = json.loads(rendered.replace(name, "everyday").replace("dira-environment", "everyday-environment"))
    (cluster,) = filter(None, map(cluster_of, kustomize("base")))
    head = wanted["headGroupSpec"]["template"]
    del head["metadata"]["annotations"]["dira-dist/job-file"]
    for holder, key in ((head["spec"], "volumes"), (head["spec"]["containers"][0], "volumeMounts")):
        holder[key] = [each for each in holder[key] if each["name"] != "job"]
    wanted["workerGroupSpecs"][0] |= {"minReplicas": 0}
    assert cluster.pop("upgradeStrategy") == {"type": "Recreate"}  # or a new image reaches its workers alone
    assert json.loads(re.sub(r"(everyday-environment)-\w+", r"\1", json.dumps(cluster))) == wanted


def test_what_restarts_on_a_changed_setting_names_it_by_its_content(kustomize: Kustomize, tmp_path: Path) -> None:
    """The overlay of a person's own that docs/kubernetes.md shows."""
    shutil.copytree(K8S, tmp_path / "dira-dist" / "k8s", ignore=shutil.ignore_patterns("*.env.example"))
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (shown,) = (block for block in re.findall(r"```yaml\n(.+?)```", page, re.DOTALL) if "configMapGenerator" in block)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(shown.replace("sha256:...", f"sha256:{64 * '0'}"))
    (tmp_path / "mine" / "settings.env").write_text("AWS_ENDPOINT_URL=https://s3.example.internal\n")
    for before, after in zip(
        *(_settings(kustomize(folder)) for folder in ("overlays/gpu", str(tmp_path / "mine"))), strict=True
    ):
        assert before != after
    mine = kustomize(str(tmp_path / "mine"))
    assert {each["data"]["AWS_ENDPOINT_URL"] for each in mine if each["kind"] == "ConfigMap"} == {
        "https://s3.example.internal"
    }
    assert "registry.example/dira-dist@sha256:" in json.dumps([each for each in mine if each["kind"] == "RayCluster"])


def _settings(manifests: list[Manifest]) -> list[str]:
    """The ConfigMaps that the everyday cluster's head and workers and MLflow name."""
    owned = [each for each in pods_of(manifests) if "dira-" not in each.where]
    return [each.spec["containers"][0]["envFrom"][0]["configMapRef"]["name"] for each in owned]


def test_files_are_named_by_kind_and_purpose_and_listed() -> None:
    assert {str(file.parent.relative_to(K8S)) for file in K8S.rglob("kustomization.yaml")} - {"secrets"} == {
        *EVERYTHING,
        *(f"components/{name}" for name in ("gpu", "spot", "kueue")),
    }
    for folder in {file.parent for file in K8S.rglob("kustomization.yaml")}:
        text = (folder / "kustomization.yaml").read_text()
        for file in folder.glob("*.yaml"):
            if file.name != "kustomization.yaml":
                assert re.fullmatch(r"[a-z]+\.[a-z0-9-]+\.yaml", file.name), file
                assert file.name in text, f"{file} belongs to nothing"
                if not file.name.startswith(("patch.", "configuration.")):
                    kinds = [each["kind"].lower() for each in yaml.safe_load_all(file.read_text())]
                    assert file.name.split(".")[0] in kinds


def test_submitters_read_one_secret_and_change_nothing_but_jobs(kustomize: Kustomize) -> None:
    manifests = kustomize("overlays/gpu")
    roles = {each["metadata"]["name"]: each["rules"] for each in manifests if each["kind"] == "Role"}
    (cluster,) = (each for each in manifests if each["kind"] == "RayCluster")
    for binding in (each for each in manifests if each["kind"] == "RoleBinding"):
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]
        assert binding["roleRef"]["name"] in roles
    changing = {"create", "update", "patch", "delete", "deletecollection", "*"}
    for rule in (rule for rules in roles.values() for rule in rules):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:  # KubeRay keeps a cluster's token in a Secret of the cluster's name
            assert (rule["resourceNames"], rule["verbs"]) == ([cluster["metadata"]["name"]], ["get"])
        if changing & set(rule["verbs"]):
            assert set(rule["resources"]) <= {"rayjobs", "pods/portforward"}
    mlflow = next(each for each in manifests if each["kind"] == "StatefulSet")
    for rule in roles["mlflow-reader"]:  # not the database's pod, which stands beside it
        assert rule["resourceNames"] == [f"{mlflow['metadata']['name']}-0"]


def test_secrets_of_the_records_are_out_of_the_jobs_reach(kustomize: Kustomize, tmp_path: Path) -> None:
    shutil.copytree(K8S / "secrets", tmp_path / "secrets")
    for example in (tmp_path / "secrets").glob("*.example"):
        example.with_suffix("").write_text(example.read_text())
    secrets = {each["metadata"]["name"]: each["metadata"]["namespace"] for each in kustomize(str(tmp_path / "secrets"))}
    jobs, tracking = "dira", "dira-tracking"
    assert secrets == {"dira-s3": jobs, "dira-salt": jobs, "mlflow-s3": tracking, "dira-postgres": tracking}
    for folder in ("tracking", "database"):
        assert {each["metadata"]["namespace"] for each in kustomize(folder)} == {tracking}


def test_a_budget_holds_heads_and_no_worker(kustomize: Kustomize) -> None:
    """A budget on workers would refuse the eviction that tells them of a machine's end."""
    for folder in PLATFORMS:
        manifests = [*kustomize(folder), *kustomize("base/pretrain")]
        (quota,) = (each["spec"]["hard"]["pods"] for each in manifests if each["kind"] == "ResourceQuota")
        budgets = [each["spec"] for each in manifests if each["kind"] == "PodDisruptionBudget"]
        held = [budget["selector"]["matchLabels"] for budget in budgets]
        for pod in pods_of(manifests):
            if cluster_of(
                next(each for each in manifests if f"{each['kind']}/{each['metadata']['name']}" in pod.where)
            ):
                found = [each for each in held if each.items() <= pod.template["metadata"]["labels"].items()]
                assert len(found) == int(pod.where.endswith("/head")), pod.where
        assert all(each["minAvailable"] > int(quota) for each in budgets if "unhealthyPodEvictionPolicy" in each)


def test_heads_are_not_moved_to_make_room(kustomize: Kustomize) -> None:
    for folder in EVERYTHING:
        for cluster in filter(None, map(cluster_of, kustomize(folder))):
            annotations = cluster["headGroupSpec"]["template"]["metadata"]["annotations"]
            assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_every_volume_in_memory_or_on_the_machine_has_a_bound(kustomize: Kustomize) -> None:
    """KubeRay's own volume of Ray's logs among them: it takes ours of that name."""
    for pod in (pod for folder in EVERYTHING for pod in pods_of(kustomize(folder))):
        volumes = pod.spec.get("volumes", [])
        assert all("sizeLimit" in each["emptyDir"] for each in volumes if "emptyDir" in each), pod.where
        if pod.where.endswith("/head"):
            assert "ray-logs" in [each["name"] for each in volumes], pod.where
            assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in pod.spec["containers"][0]["volumeMounts"]


@pytest.mark.parametrize("folder", ["base", "tracking"])
def test_names_are_asked_of_every_usual_server_and_operators_are_known_by_a_common_label(
    manifests: list[Manifest],
) -> None:
    (policy,) = (
        each for each in manifests if each["metadata"]["name"] in ("ray", "mlflow") and each["kind"] == "NetworkPolicy"
    )
    (names,) = (rule for rule in policy["spec"]["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", []))
    assert {"protocol": "UDP", "port": 5353} in names["ports"]  # OpenShift's
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in names["to"]  # NodeLocal DNSCache
    if policy["metadata"]["name"] == "ray":
        (operator,) = (
            rule for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"protocol": "TCP", "port": 8265}]
        )
        assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
        assert {443, 6443, 8443} <= {
            each["port"] for rule in policy["spec"]["egress"] for each in rule.get("ports", [])
        }


def test_overlays_want_no_definitions_but_kuberays_and_their_own(kustomize: Kustomize) -> None:
    for folder in PLATFORMS:
        groups = {each["apiVersion"].partition("/")[0] for each in kustomize(folder) if "." in each["apiVersion"]}
        own = {"kueue.x-k8s.io"} if folder == "overlays/kueue" else set()
        assert groups <= {"ray.io", "networking.k8s.io", "rbac.authorization.k8s.io"} | own


def test_taking_a_platform_down_leaves_namespaces_and_database(kustomize: Kustomize) -> None:
    for folder in set(PLATFORMS) - {"overlays/smoke"}:
        taken = {(each["kind"], each["metadata"]["name"]) for each in kustomize(folder)}
        assert "Namespace" not in {kind for kind, _ in taken}
        assert ("StatefulSet", "postgres") not in taken
    smoke = kustomize("overlays/smoke")  # by itself: another namespace, so another database
    assert {each["metadata"]["namespace"] for each in smoke if each["kind"] != "Namespace"} == {"dira-smoke"}


def test_the_policy_refuses_the_names_that_render_changes(kustomize: Kustomize) -> None:
    (policy,) = (each for each in kustomize("cluster") if each["kind"] == "ValidatingAdmissionPolicy")
    expressions = " ".join(each["expression"] for each in policy["spec"]["validations"])
    assert set(re.findall(r'metadata\.name != "(.+?)"', expressions)) == STANDING
    (cluster,) = (each for each in kustomize("base") if each["kind"] == "RayCluster")
    assert {cluster["metadata"]["name"]} == STANDING
