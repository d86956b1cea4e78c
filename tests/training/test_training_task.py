"""Pretraining as a task: which parts are computed, kept and packaged is one answer, whoever asks."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from line import LineJob
from torch import Tensor, nn

import dira_dist
from dira_dist.config import RequestError
from dira_dist.jobs.load import job_schema, load_job
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.models.backbone import Backbone, BackboneSection
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.model_files import CARD, read_facts
from dira_dist.objectives import AdversarialConfig
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.objectives.parts import LossWeights, active_parts, objectives_with
from dira_dist.registry.pull import _check_decoder
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.stages import Position
from dira_dist.training.task import About, recipe_of, recipes
from dira_dist.views import Views


def job(*objectives: str, weights: str = "{}") -> PretrainJob:
    stages = [{"objective": objective, "steps": 1} for objective in objectives]
    found = load_job(
        {
            "name": "parts",
            "data": {"train": "shards", "image_size": 32, "global_batch": 4},
            "model": {"encoder": "resnet18"},
            "method": {"name": "moco_v2", "queue_size": 8},
            "stages": stages,
        },
        [f"loss_weights={weights}"],
    ).job
    assert isinstance(found, PretrainJob)
    return found


@pytest.mark.parametrize(
    ("objective", "weights", "discriminates", "restores", "plays"),
    [
        ("di", {}, True, False, False),
        ("dir", {}, True, True, False),
        ("dira", {}, True, True, True),
        ("re", {}, False, True, False),
        ("rea", {}, False, True, True),
        ("dira", {"adversarial": 0}, True, True, False),
        ("dira", {"restorative": 0}, True, True, True),
        ("rea", {"restorative": 0}, False, True, True),
        ("dira", {"restorative": 0, "adversarial": 0}, True, False, False),
    ],
)
def test_what_a_stage_computes(
    objective: Any, weights: dict[str, float], discriminates: bool, restores: bool, plays: bool
) -> None:
    parts = active_parts(objective, LossWeights(**weights))
    assert (parts.discriminates, parts.restores, parts.plays) == (discriminates, restores, plays)


def test_a_stage_that_computes_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="stage re has only the parts restorative and each weighs 0"):
        active_parts("re", LossWeights(restorative=0))
    assert objectives_with("adversarial") == ("dira", "rea")


def test_what_no_stage_computes_is_not_kept_and_changes_no_other_weight() -> None:
    whole = job("di", "dira").build_task().build().state_dict()
    for objectives, lacking in (
        (("di",), "discriminator."),
        (("dir",), "discriminator."),
        (("re",), "method."),
        (("rea",), "method."),
    ):
        found = job(*objectives).build_task().build().state_dict()
        assert not any(name.startswith(lacking) for name in found)
        for name, value in found.items():
            assert torch.equal(value, whole[name]) if isinstance(value, Tensor) else value == whole[name], name


def test_an_adversary_that_weighs_nothing_is_no_adversary() -> None:
    recipe = job("di", "dira", weights="{adversarial: 0}")
    assert not recipe.trained_parts(Position(stage=2)).plays
    assert recipe.build_task().build().discriminator is None


def test_parts_are_trained_from_the_first_step_of_their_stage_on() -> None:
    recipe = job("di", "dira")
    assert recipe.trained_parts(Position()).names == ()
    assert recipe.trained_parts(Position(stage=0, step_in_stage=1)).names == ("discriminative",)
    assert recipe.trained_parts(Position(stage=1)).names == ("discriminative",)
    everything = ("discriminative", "restorative", "adversarial")
    assert recipe.trained_parts(Position(stage=1, step_in_stage=1)).names == everything


def packaged(tmp_path: Path, *objectives: str) -> Path:
    task = job(*objectives).build_task()
    tensors = {"networks": task.build().state_dict()}
    return task.package(tensors, Position(stage=len(objectives)), tmp_path / "-".join(objectives), About("a")).folder


def test_a_model_holds_what_was_trained(tmp_path: Path) -> None:
    di, dira = packaged(tmp_path, "di"), packaged(tmp_path, "di", "dira")
    assert not (di / "discriminator.safetensors").exists() and (dira / "discriminator.safetensors").exists()
    assert (di / "unet.safetensors").stat().st_size < (dira / "unet.safetensors").stat().st_size
    assert read_facts(di).trained == ["discriminative"]
    assert not read_facts(di).decoder and read_facts(dira).decoder
    assert "its decoder was not trained" in (di / CARD).read_text()
    assert "parts: discriminative, restorative, adversarial" in (dira / CARD).read_text()
    _check_decoder("models:/a/1", read_facts(dira))
    with pytest.raises(RequestError, match=r"models:/a/1 has no trained decoder.* up to that point"):
        _check_decoder("models:/a/1", read_facts(di))


def test_a_task_is_made_again_from_a_recorded_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_NAME", "somebody")
    recorded = load_job({"name": "a", "data": {"train": "${env:HOME}/x"}, "stages": [{"objective": "re", "steps": 1}]})
    assert {"pretrain", "finetune"} <= set(recipes())
    again = recipe_of(recorded.public)
    assert again.data.train.endswith("/x")
    assert again.stage_configs()[0].label == "re"
    named = load_job({"name": "${env:USER_NAME}", "data": {"train": "x"}, "stages": [{"objective": "re", "steps": 1}]})
    monkeypatch.delenv("USER_NAME")
    assert recipe_of(named.public).stage_configs() == again.stage_configs(), "nor a name"
    views = {"views": {"crop": "${env:NOBODY_SET_THIS}"}}
    with pytest.raises(RequestError, match="set NOBODY_SET_THIS, which it names"):
        recipe_of({**named.public, **views})
    with pytest.raises(RequestError, match="kind 'knitting'"):
        recipe_of({"kind": "knitting"})


def test_the_three_losses_are_named_in_few_modules() -> None:
    """Whoever needs to know what a stage computes asks ``objectives/parts.py``."""
    package = Path(dira_dist.__file__).parent
    words = re.compile(r"(?<![\w.])(restorative_loss|adversarial_loss|RESTORATIVE|ADVERSARIAL|DISCRIMINATIVE)\b")
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if len(set(words.findall(file.read_text()))) >= 2 and file.name != "__init__.py"
    }
    assert found <= {"objectives/parts.py", "training/pretrain/losses.py", "training/pretrain/running_guards.py"}


class CubesConfig(BackboneSection):
    dims = 3
    name: Literal["cubes"] = "cubes"

    def build(self) -> "Cubes":
        return Cubes(self)

    def unused_parameters(self, restore: bool) -> set[str]:
        return set() if restore else {"head.weight", "head.bias"}


class Cubes(Backbone):
    def __init__(self, config: CubesConfig) -> None:
        super().__init__()
        self.config, self.channels = config, 8
        self.encoder = Maps(config.in_channels)
        self.head = nn.Conv3d(8, self.restored_channels, 1)

    def decode(self, maps: list[Tensor]) -> Tensor:
        found: Tensor = torch.sigmoid(self.head(nn.functional.interpolate(maps[-1], maps[0].shape[2:])))
        return found


class Maps(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, 8, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, self.convolution(image)]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("objective", ["di", "dir", "dira", "re", "rea"])
def test_the_machinery_asks_a_backbone_for_no_second_dimension(objective: Any, channels: int) -> None:
    adversarial = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(4, 8)))
    method = MoCoV2Config(queue_size=8, outputs=4)
    networks = build_networks(CubesConfig(in_channels=channels), method, adversarial, seed=0)
    step = pretrain_step(networks, objective, adversarial=adversarial, total_steps=3)
    first, second = (torch.rand(2, channels, 8, 16, 12) for _ in range(2))
    before = networks.unet.encoder.convolution.weight.clone()
    result = step(Views(first, second, first[:, : networks.unet.restored_channels], torch.arange(2)), 0)
    assert result.finite and not torch.equal(networks.unet.encoder.convolution.weight, before)


def test_a_search_may_be_over_any_kind() -> None:
    schema = json.dumps(job_schema())
    for kind, base in ((LineJob, {"kind": "line"}), (PretrainJob, {"stages": [{"objective": "re", "steps": 1}]})):
        search = {
            "kind": "tune",
            "name": "s",
            "search": {"space": {"seed": {"choices": [0, 1]}}},
            "base": {"data": {"train": "x"}, **base},
        }
        found = load_job(search)
        assert type(found.job) is kind
        assert found.job.name == "s"
        assert kind.__name__ in schema
    with pytest.raises(RequestError, match="found 'knitting'; allowed: 'finetune', 'line', 'pretrain'"):
        load_job({**search, "base": {"kind": "knitting"}})
