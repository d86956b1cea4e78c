"""An evaluation holds figures and what there is to look at, of exactly what it was asked for."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shard_sets import ShardWriter

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.shards import Sample, read_index
from dira_dist.evaluation import evaluator as evaluator_module
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.evaluator import RESTORATION_METRICS as RESTORED
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
    salt = folder / "salt"
    salt.write_text("the same split everywhere")
    labels = str(folder / "archive" / "labels.csv")
    options = ShardOptions(image_size=None, labels=labels, processes=1, salt_file=str(salt))
    shard(folder / "archive" / "images", folder / "shards", options)
    halves = options.model_copy(update={"split": {"train": 0.5, "val": 0.5}, "samples_per_shard": 3})
    shard(folder / "archive" / "images", folder / "halves", halves)
    return folder / "shards"


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8)))


def evaluator(shards: Path, probe: bool) -> Evaluator:
    with (shards.parent / "archive" / "labels.csv").open() as table:
        label = next(name for name in csv.DictReader(table).fieldnames or () if name not in ("image", "patient"))
    halves = {part: str(shards.parent / "halves" / part) for part in ("train", "val")}
    config = ProbeConfig(**halves, label=label, bootstrap=0) if probe else None
    return Evaluator(str(shards), config, ViewsConfig(), seed=0, image_size=SIZE_PX)


def test_what_is_asked_for_is_handed_out(shards: Path, unet: UNet) -> None:
    discriminator, device = PatchDiscriminator(DiscriminatorConfig(channels=(4, 8))), torch.device("cpu")
    asked = evaluator(shards, probe=True)
    whole = asked.evaluate(unet, device, discriminator)
    assert {"val/psnr", "val/rankme", "probe/auroc"} <= set(whole.metrics)
    assert whole.restorations is not None
    assert whole.scores is not None
    assert whole.features is not None
    with torch.no_grad():
        expected = discriminator(whole.restorations.restored)
    assert torch.allclose(whole.scores.restored, expected, atol=1e-6)
    assert whole.scores.target.shape == expected.shape
    assert whole.warnings == ()
    assert asked.probe is not None
    probed = read_index(asked.probe.val).samples
    assert whole.features.features.shape == (probed, unet.encoder.out_channels[-1])
    assert len(set(whole.features.classes)) > 1
    plain = evaluator(shards, probe=False).evaluate(unet, device)
    assert (plain.scores, plain.features) == (None, None)
    assert plain.metrics == {name: value for name, value in whole.metrics.items() if name.startswith("val/")}


def test_the_figures_are_named_before_they_are_measured(shards: Path, unet: UNet) -> None:
    for probe, restores in ((True, True), (False, True), (False, False)):
        asked = replace(evaluator(shards, probe), restores=restores)
        named = reported_metrics(asked.val, asked.probe, restores=restores)
        assert set(asked.evaluate(unet, torch.device("cpu")).metrics) == set(named)
    assert reported_metrics(None, None) == []


def test_a_decoder_that_is_never_trained_is_not_looked_at(shards: Path, unet: UNet) -> None:
    device, asked = torch.device("cpu"), evaluator(shards, probe=False)
    whole, encoded = (replace(asked, restores=each).evaluate(unet, device) for each in (True, False))
    assert encoded.restorations is None and encoded.scores is None
    assert encoded.metrics == {name: value for name, value in whole.metrics.items() if name not in RESTORED}


def test_an_untrained_encoder_gives_the_same_figures_each_time(shards: Path, unet: UNet) -> None:
    """What is drawn depends on nothing but the seed, so that evaluations of one run can be compared."""
    first, again = (evaluator(shards, probe=True).evaluate(unet, torch.device("cpu")).metrics for _ in range(2))
    assert first == again


def test_images_that_stand_in_both_probe_sets_are_told(shards: Path, unet: UNet) -> None:
    asked = evaluator(shards, probe=True)
    assert asked.probe is not None
    overlapping = replace(asked, val=None, probe=asked.probe.model_copy(update={"train": str(shards)}))
    found = overlapping.evaluate(unet, torch.device("cpu"))
    assert found.metrics["probe/common_groups"] == 1, "the whole set holds each image of its half"
    (warning,) = found.warnings
    assert "100.0% of the images read of probe.val" in warning
    assert "--group-by patient" in warning
    swapped = replace(asked, val=None, probe=asked.probe.model_copy(update={"val": str(shards)}))
    with pytest.raises(RequestError, match=r"every sample of it, or its patient, stands in probe.val"):
        swapped.evaluate(unet, torch.device("cpu"))


def test_what_is_looked_at_of_a_large_set_is_drawn_over_all_of_it(
    shards: Path, unet: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive whose first half is all of one class; the first samples alone could not be judged at all."""
    for number, part in enumerate(("train", "val")):
        with ShardWriter(
            str(shards.parent / "sorted" / part), mode="L", encoding="png", samples_per_shard=12
        ) as writer:
            for place in range(IMAGES):
                image = (shards.parent / "archive" / "images" / f"{place:06d}.png").read_bytes()
                state = "ill" if place < IMAGES // 2 else "well"
                writer.add(Sample(f"{number}-{place:03d}", image, "png", 48, 48, {"labels": {"state": state}}))
    sets = {part: str(shards.parent / "sorted" / part) for part in ("train", "val")}
    probe = ProbeConfig(**sets, label="state", bootstrap=0)
    monkeypatch.setattr(evaluator_module, "MOST_PROBE_IMAGES", 8)
    asked = Evaluator(None, probe, ViewsConfig(), seed=0, image_size=SIZE_PX)
    found = asked.evaluate(unet, torch.device("cpu"))
    assert found.features is not None
    assert found.features.classes == ["ill"] * 4 + ["well"] * 4
    other = replace(asked, seed=1).evaluate(unet, torch.device("cpu"))
    assert other.features is not None
    assert not torch.equal(other.features.features, found.features.features), "the seed draws"


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
