"""Models in the registry: which alias moves when, what a version holds, and the way back to files."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from dira_dist.config import RequestError
from dira_dist.evaluation.features import extract_features
from dira_dist.files import sha256_of
from dira_dist.formats import FormatError
from dira_dist.models.model_files import ModelFacts, damaged_files, read_facts, write_checksums, write_model_folder
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.registry import registry
from dira_dist.registry.fetch import fetch
from dira_dist.registry.publish import register
from dira_dist.registry.pull import pull
from dira_dist.registry.registry import Metric, Registered, register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.task import packaged

SIZE_PX = 32


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(encoder="resnet18", in_channels=1, decoder_channels=(8, 8, 8, 8, 8))).eval()


@pytest.fixture(scope="module")
def model_folder(network: UNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = ModelFacts(
        "dira-test",
        "resnet18",
        1,
        SIZE_PX,
        settings={"method": "moco_v2", "loss weights": "1 | 10 | 0.001"},
        data={"digest": "abcdef", "samples": 400},
        quality={"probe/auroc": 0.7123},
        origin={"run": "r1"},
    )
    folder = tmp_path_factory.mktemp("model") / "dira-test"
    pictures = {"dira/grid": np.zeros((8, 8, 3), np.uint8)}
    discriminator = {"model.0.weight": torch.ones(2, 2)}
    return write_model_folder(
        folder,
        network.state_dict(),
        facts,
        job="kind: pretrain\n",
        discriminator_state=discriminator,
        pictures=pictures,
    )


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the least that can be registered, for tests of aliases alone."""
    folder = tmp_path_factory.mktemp("small")
    save_file({"encoder.weight": torch.zeros(1)}, folder / "unet.safetensors")
    (folder / "model.json").write_text("{}")
    write_checksums(folder)
    return folder


@pytest.fixture
def run(server_config: TrackingConfig) -> Iterator[TrackingRun]:
    run = TrackingRun.create(server_config, "job", {})
    yield run
    run.finish("FINISHED")


def another(folder: Path, value: float, dest: Path) -> Path:
    """The small folder with other weights."""
    dest.mkdir(parents=True)
    save_file({"encoder.weight": torch.full((1,), value)}, dest / "unet.safetensors")
    (dest / "model.json").write_text("{}")
    write_checksums(dest)
    return dest


def test_best_moves_only_to_a_better_value_of_the_same_metric(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, tmp_path: Path, mlflow_server: Any
) -> None:
    def put(value: float, metric: Metric | None) -> Registered:
        folder = another(small_folder, value, tmp_path / str(value))
        return register_version(server_config, run.run_id, packaged(folder), metric=metric, tags={"method": "moco_v2"})

    client = MlflowClient(mlflow_server.uri)
    name = str(server_config.register_as)
    best_after = []
    for number, metric in enumerate(
        (
            Metric("probe/auroc", float("nan")),
            Metric("probe/auroc", 0.70),
            Metric("probe/auroc", 0.65),
            Metric("probe/auroc", 0.70),
            None,
            Metric("val/rankme", 900.0),
            Metric("probe/auroc", 0.71),
        )
    ):
        done = put(float(number), metric)
        assert done.version == number + 1
        assert done.address == f"models:/{name}/{number + 1}"
        holder = client.get_registered_model(name).aliases.get("best")
        assert done.is_best == (str(holder) == str(done.version))
        best_after.append(None if holder is None else int(holder))
    assert best_after == [None, 2, 2, 2, 2, 2, 7]
    assert int(client.get_model_version_by_alias(name, "latest").version) == 7
    stored = client.get_model_version(name, "2")
    assert (stored.tags["dira.metric"], stored.tags["dira.metric_value"]) == ("probe/auroc", "0.7")
    assert stored.tags["method"] == "moco_v2"


def test_of_two_that_register_at_once_the_better_one_ends_as_best(
    server_config: TrackingConfig,
    run: TrackingRun,
    small_folder: Path,
    tmp_path: Path,
    mlflow_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have read who was the best before either has said that it is: the worse one comes last."""

    def put(value: float) -> Registered:
        folder = another(small_folder, value, tmp_path / str(value))
        return register_version(server_config, run.run_id, packaged(folder), metric=Metric("val/dice", value))

    client, name = MlflowClient(mlflow_server.uri), str(server_config.register_as)
    assert put(0.5).is_best
    before = registry._holder_of_best(client, name)
    assert put(0.9).is_best
    monkeypatch.setattr(registry, "_holder_of_best", lambda *_: before)
    late = put(0.8)
    assert not late.is_best
    assert late.why == "version 2, registered at the same time, has val/dice 0.9"
    assert int(client.get_model_version_by_alias(name, "best").version) == 2


def test_a_metric_of_which_less_is_better_moves_best_downwards(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, tmp_path: Path
) -> None:
    moved = [
        register_version(
            server_config,
            run.run_id,
            packaged(another(small_folder, value, tmp_path / str(value))),
            metric=Metric("val/loss", value, higher_is_better=False),
        ).is_best
        for value in (2.0, 3.0, 1.0)
    ]
    assert moved == [True, False, True]


def test_the_same_weights_of_a_run_are_registered_once(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path
) -> None:
    versions = [
        register_version(server_config, run.run_id, packaged(small_folder), metric=Metric("m", 1.0)).version
        for _ in range(2)
    ]
    assert versions == [1, 1]


def test_a_version_comes_back_whole_and_runs_without_this_package(
    server_config: TrackingConfig, run: TrackingRun, model_folder: Path, network: UNet, tmp_path: Path
) -> None:
    done = register_version(server_config, run.run_id, packaged(model_folder), metric=Metric("probe/auroc", 0.7123))
    seen: list[tuple[int, int]] = []
    folder = fetch(f"models:/{done.name}@best", tmp_path / "got", server_config, lambda *step: seen.append(step))
    assert damaged_files(folder) == []
    expected = {"README.md", "SHA256SUMS", "encoder.safetensors", "unet.safetensors", "discriminator.safetensors"}
    expected |= {"features.pt2", "job.yaml", "model.json", "pictures/dira-grid.png"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected
    total = sum((folder / name).stat().st_size for name in expected - {"SHA256SUMS"})
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert len(seen) > 2 * len(expected)  # files of several blocks move the bar more than once
    state = load_file(folder / "unet.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    facts = read_facts(folder)
    assert (facts.encoder, facts.in_channels, facts.encoder_names) == ("resnet18", 1, "torchvision")

    images = np.random.default_rng(0).integers(0, 256, (3, 1, 40, 50), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, numpy, mlflow\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('dira_dist', 'torchvision', 'timm', 'segmentation_models_pytorch'):\n"
        "            raise ImportError(name + ' is not there')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"mlflow.set_tracking_uri({server_config.uri!r})\n"
        f"model = mlflow.pyfunc.load_model('models:/{done.name}@best')\n"
        f"numpy.save({str(tmp_path / 'features.npy')!r}, model.predict(numpy.load({str(tmp_path / 'images.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    ours = extract_features(
        network.encoder, [torch.from_numpy(images)], image_size=SIZE_PX, in_channels=1, device="cpu"
    )
    assert np.abs(np.load(tmp_path / "features.npy") - ours.numpy()).max() < 1e-5


def test_the_model_takes_every_kind_of_image(model_folder: Path, network: UNet) -> None:
    from dira_dist.models.feature_model import FeatureModel

    sys.modules.setdefault("center_view", __import__("dira_dist.views.center_view", fromlist=["center_view"]))
    model = FeatureModel(model_folder)
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, 40, 40), dtype=np.uint8)
    features = model.predict(grey)
    assert features.shape == (2, 512)
    assert features.dtype == np.float32
    assert np.allclose(model.predict(grey / np.float32(255)), features, atol=1e-5)
    assert np.allclose(model.predict(np.repeat(grey, 3, axis=1)), features, atol=1e-4)
    assert np.allclose(model.predict(grey.astype(np.uint16) * 257), features, atol=1e-5)
    assert model.predict(np.repeat(grey, 40, axis=0)).shape == (80, 512)
    with pytest.raises(ValueError, match="int64"):
        model.predict(grey.astype(np.int64))


def test_the_card_says_what_a_stranger_must_know_and_its_lines_run(
    model_folder: Path, network: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (model_folder / "README.md").read_text()
    for words in ("moco_v2", "abcdef", "0.7123", "Apache-2.0", "patent pending", "no medical device", "1 / 10 / 0.001"):
        assert words in card
    monkeypatch.chdir(model_folder)
    names: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(names["model"](x), network(x)[0], atol=1e-5)


def test_a_fetch_goes_on_and_damage_is_seen(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, tmp_path: Path, mlflow_server: Any
) -> None:
    done = register_version(server_config, run.run_id, packaged(small_folder))
    dest = fetch(f"runs:/{run.run_id}", tmp_path / "got", server_config, only=("model.json",))
    assert not (dest / "unet.safetensors").exists()
    untouched = (dest / "model.json").stat().st_mtime_ns
    (dest / "unet.safetensors").write_bytes(b"broken off here")
    fetch(done.address, dest, server_config)
    assert damaged_files(dest) == []
    assert (dest / "model.json").stat().st_mtime_ns == untouched
    client = MlflowClient(mlflow_server.uri)
    (model,) = re.findall(r"m-[0-9a-f]{32}", client.get_model_version(done.name, "1").source)
    (stored,) = (mlflow_server.folder / "artifacts").glob(f"**/{model}/**/unet.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(RequestError, match=r"unet\.safetensors is damaged where it is stored"):
        fetch(done.address, tmp_path / "again", server_config)
    assert not (tmp_path / "again" / "unet.safetensors").exists()


def test_a_model_is_what_its_maker_told_or_nothing_of_it_is_fetched(
    server_config: TrackingConfig, run: TrackingRun, model_folder: Path, tmp_path: Path
) -> None:
    done = register_version(server_config, run.run_id, packaged(model_folder))
    again = register_version(server_config, run.run_id, packaged(model_folder))
    assert done.sha256 == again.sha256 == sha256_of(model_folder / "SHA256SUMS")
    pulled = pull(done.address, tmp_path / "a", sha256=done.sha256.upper(), tracking_uri=server_config.uri)
    assert pulled.model_sha256 == done.sha256
    for model in (done.address, str(model_folder)):
        with pytest.raises(RequestError, match="it is another model than the one you were told of"):
            pull(model, tmp_path / "b", sha256="0" * 64, tracking_uri=server_config.uri)
    assert not list(tmp_path.glob("b/**/*.safetensors"))


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        ({"encoder": "tu-hf-hub:x/y"}, "encoder: found 'tu-hf-hub:x/y'"),
        ({"encoder": "../../x"}, "encoder: found '../../x'"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
        ({"in_channels": 10**9}, "in_channels: found 1000000000"),
        ({"image_size": 10**6}, "image_size: found 1000000"),
        ({"network": {"name": "unet", "encoder": "tu-hf-hub:x/y"}}, "unknown encoder 'tu-hf-hub:x/y'"),
        ({"network": {"name": "unet", "in_channels": -1}}, "in_channels: Input should be greater than or equal to 1"),
        ({"network": {"name": "../x"}}, "a name among unet, unet3d"),
        ({"network": {"surplus": 1}}, "surplus: Extra inputs are not permitted"),
    ],
)
def test_a_model_that_lies_about_its_network_is_refused_before_anything_is_built(
    model_folder: Path, tmp_path: Path, lie: dict[str, Any], found: str
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "lying")
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**facts, **lie}))
    write_checksums(folder)
    with pytest.raises(FormatError, match=re.escape(found)):
        pull(str(folder), tmp_path / "weights")
    assert not (tmp_path / "weights").exists() or not list((tmp_path / "weights").rglob("*.safetensors"))


def test_a_registration_outlasts_an_outage_and_is_made_once(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, wire: Any, mlflow_server: Any
) -> None:
    cut = server_config.model_copy(update={"uri": wire.uri})
    wire.connected = False
    with pytest.raises(RequestError, match="cannot be reached"):
        register_version(cut, run.run_id, packaged(small_folder), timeout_s=0)
    wire.refused.clear()
    with ThreadPoolExecutor(1) as other:
        registering = other.submit(register_version, cut, run.run_id, packaged(small_folder))
        assert wire.refused.wait(60)
        wire.connected = True
        assert registering.result(60).version == 1
    versions = MlflowClient(mlflow_server.uri).search_model_versions(f"name = '{server_config.register_as}'")
    assert len(versions) == 1


def test_a_registration_that_breaks_off_is_taken_up_and_leaves_one_logged_model(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, broken_off = MlflowClient.log_model_artifacts, [OSError("disk full"), OSError("disk full")]

    def full_for_a_while(client: MlflowClient, model_id: str, folder: str) -> None:
        if broken_off:
            raise broken_off.pop()
        upload(client, model_id, folder)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full_for_a_while)
    with pytest.raises(RequestError, match="disk full"):
        register_version(server_config, run.run_id, packaged(small_folder), timeout_s=0)
    done = register_version(server_config, run.run_id, packaged(small_folder), timeout_s=60)
    assert done.version == 1
    client = MlflowClient(server_config.uri)
    models = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
    assert [model.status for model in models] == ["READY"]
    assert [output.model_id for output in client.get_run(run.run_id).outputs.model_outputs] == [models[0].model_id]


def test_a_damaged_folder_is_not_registered(server_config: TrackingConfig, small_folder: Path, tmp_path: Path) -> None:
    folder = another(small_folder, 5.0, tmp_path / "five")
    (folder / "model.json").write_text("{")
    with pytest.raises(RequestError, match=r"damaged or missing: model\.json"):
        register_version(server_config, "any", packaged(folder))


def test_unknown_addresses_name_the_nearest(
    server_config: TrackingConfig, run: TrackingRun, small_folder: Path, tmp_path: Path
) -> None:
    done = register_version(server_config, run.run_id, packaged(small_folder))
    wrong = {
        f"models:/{done.name[:-1]}@best": done.name,
        f"models:/{done.name}@bset": "nearest: best",
        f"models:/{done.name}/7": "versions: 1; aliases: @best",
        f"models:/{done.name}": "models:/NAME@ALIAS",
        "runs:/0123": "there is no such run",
        "dira": "models:/NAME@ALIAS",
    }
    for address, words in wrong.items():
        with pytest.raises(RequestError) as refused:
            fetch(address, tmp_path / "got", server_config)
        assert words in str(refused.value)
        assert address in str(refused.value)
    MlflowClient(str(server_config.uri)).create_registered_model(f"{done.name}-empty")
    for address in (f"models:/{done.name}-empty@latest", f"models:/{done.name}-empty/latest"):
        with pytest.raises(RequestError, match="has no version yet"):
            fetch(address, tmp_path / "got", server_config)
    assert fetch(f"models:/{done.name}/latest", tmp_path / "a", server_config).is_dir()
    assert fetch(f"models:/{done.name}@latest", tmp_path / "b", server_config).is_dir()


def test_a_run_without_a_model_and_a_registry_without_an_address_say_so(
    server_config: TrackingConfig, run: TrackingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="has no registered model"):
        fetch(f"runs:/{run.run_id}", tmp_path, server_config)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_URI"):
        fetch("models:/a@best", tmp_path, TrackingConfig())


def test_a_run_whose_storage_is_out_of_reach_is_told_in_seconds(
    server_config: TrackingConfig, run: TrackingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_checkpoint("s3://bucket/runs/a/000000001", 1)
    run.finish("FINISHED")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began_s = time.monotonic()
    with pytest.raises(RequestError, match=r"s3://bucket/runs/a/000000001: .*cannot be reached|no credentials"):
        register(f"runs:/{run.run_id}", name="a", tracking_uri=server_config.uri)
    assert time.monotonic() - began_s < 60


def test_a_sqlite_registry_works_like_a_server(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", register_as="m", system_metrics_every_s=0)
    run = TrackingRun.create(config, "job", {})
    done = register_version(config, run.run_id, packaged(model_folder), metric=Metric("probe/auroc", 0.5))
    assert done.is_best
    folder = fetch("models:/m@best", tmp_path / "got", config, only=("model.json",))
    assert json.loads((folder / "model.json").read_text())["encoder"] == "resnet18"
    assert run.finish("FINISHED")
    assert mlflow.get_tracking_uri() != config.uri  # nothing global was changed


def test_a_model_that_0_1_0_registered_is_pulled(
    server_config: TrackingConfig, run: TrackingRun, model_folder: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(model_folder, tmp_path / "old"))
    facts = json.loads((old / "model.json").read_text())
    del facts["version"]  # as it was written then
    (old / "model.json").write_text(json.dumps(facts, indent=2))
    write_checksums(old)
    done = register_version(server_config, run.run_id, packaged(old), metric=None, tags={})
    pulled = pull(done.address, tmp_path / "weights", tracking_uri=server_config.uri)
    assert load_file(pulled.path).keys() == load_file(old / "encoder.safetensors").keys()
