"""An evaluation holds figures and what there is to look at, of exactly what it was asked for."""

import csv
from pathlib import Path

import pytest
import torch

from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.evaluator import Evaluator, reported_metrics
from dira_dist.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.quickstart.phantom import write_archive
from dira_dist.views import ViewsConfig

IMAGES = 24
SIZE_PX = 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluator")
    write_archive(folder / "archive", IMAGES, size_px=48)
    options = ShardOptions(image_size=None, labels=str(folder / "archive" / "labels.csv"), processes=1)
    shard(folder / "archive" / "images", folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8)))


def evaluator(shards: Path, probe: bool) -> Evaluator:
    with (shards.parent / "archive" / "labels.csv").open() as table:
        label = next(name for name in csv.DictReader(table).fieldnames or () if name not in ("image", "patient"))
    config = ProbeConfig(train=str(shards), val=str(shards), label=label, bootstrap=0) if probe else None
    return Evaluator(str(shards), config, ViewsConfig(), seed=0, image_size=SIZE_PX)


def test_what_is_asked_for_is_handed_out(shards: Path, unet: UNet) -> None:
    discriminator, device = PatchDiscriminator(DiscriminatorConfig(channels=(4, 8))), torch.device("cpu")
    whole = evaluator(shards, probe=True).evaluate(unet, device, discriminator)
    assert {"val/psnr", "val/rankme", "probe/auroc"} <= set(whole.metrics)
    assert whole.restorations is not None
    assert whole.scores is not None
    assert whole.features is not None
    with torch.no_grad():
        expected = discriminator(whole.restorations.restored)
    assert torch.allclose(whole.scores.restored, expected, atol=1e-6)
    assert whole.scores.target.shape == expected.shape
    assert whole.features.features.shape == (IMAGES, unet.encoder.out_channels[-1])
    assert len(set(whole.features.classes)) > 1
    plain = evaluator(shards, probe=False).evaluate(unet, device)
    assert (plain.scores, plain.features) == (None, None)
    assert plain.metrics == {name: value for name, value in whole.metrics.items() if name.startswith("val/")}


def test_the_figures_are_named_before_they_are_measured(shards: Path, unet: UNet) -> None:
    for probe in (True, False):
        asked = evaluator(shards, probe)
        assert set(asked.evaluate(unet, torch.device("cpu")).metrics) == set(reported_metrics(asked.val, asked.probe))
    assert reported_metrics(None, None) == []


def test_alignment_falls_to_nothing_where_the_encoder_sees_no_difference(shards: Path, unet: UNet) -> None:
    metrics = evaluator(shards, probe=False).evaluate(unet, torch.device("cpu")).metrics
    assert 0 < metrics["val/alignment"] < 4
    blind = UNet(unet.config)
    for parameter in blind.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    for module in blind.encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.bias)
    collapsed = evaluator(shards, probe=False).evaluate(blind, torch.device("cpu")).metrics
    assert collapsed["val/alignment"] == pytest.approx(0, abs=1e-6)
    assert collapsed["val/collapsed"] == 1
    assert collapsed["val/rankme"] == pytest.approx(1, abs=0.01)
