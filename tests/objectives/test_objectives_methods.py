"""Methods as modules: what they learn, remember and refuse; a further one in one file."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import dira_dist
from dira_dist.objectives import METHODS, GlobalBatch, MethodConfig, default_method
from dira_dist.objectives.collectives import RowExchange
from dira_dist.objectives.method import MethodInputs
from dira_dist.objectives.moco_v2 import MoCoV2, MoCoV2Config


class TinyEncoder(nn.Module):
    """(B, 1, 4, 4) to one feature map (B, 6, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(image))]


def _moco(**settings: float) -> tuple[MoCoV2, TinyEncoder]:
    torch.manual_seed(0)
    encoder = TinyEncoder()
    config = MoCoV2Config.model_validate({"queue_size": 5, "outputs": 3, **settings})
    return config.build(encoder, features=6), encoder


def _loss(method: MoCoV2, encoder: TinyEncoder, views: Tensor) -> Tensor:
    features = encoder(views)[-1].mean((2, 3))
    inputs = MethodInputs(lambda view: encoder(view)[-1].mean((2, 3)), features, second_view=views.flip(0))
    return method(inputs, GlobalBatch((len(views),)))


def test_methods_are_found_by_name() -> None:
    assert METHODS.keys() >= {"moco_v2", "barlow_twins", "simsiam"}
    adapter: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)
    for name, section in METHODS.items():
        assert type(adapter.validate_python({"name": name})) is section
    assert default_method().name == "moco_v2"
    with pytest.raises(ValidationError, match="moco_v2"):
        adapter.validate_python({"name": "byol"})
    with pytest.raises(ValidationError, match="queue_size"):
        adapter.validate_python({"name": "simsiam", "queue_size": 3})


def test_key_encoder_follows_and_queue_fills_in_commit_alone() -> None:
    method, encoder = _moco(momentum=0.9)
    before = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, Tensor)}
    with torch.no_grad():
        encoder.conv.weight += 1
    _loss(method, encoder, torch.rand(3, 1, 4, 4)).backward()
    assert torch.equal(method.queue, before["queue"]) and method.keys_seen == 0
    assert torch.equal(method.key.encoder.conv.weight, before["key.encoder.conv.weight"])
    keys = method._pending
    method.after_optimizer_step(encoder)
    assert torch.equal(method.queue[:3], keys) and torch.equal(method.queue[3:], before["queue"][3:])
    expected = 0.9 * before["key.encoder.conv.weight"] + 0.1 * encoder.conv.weight
    torch.testing.assert_close(method.key.encoder.conv.weight, expected.detach())
    assert method.keys_seen == 3


def test_the_queue_goes_on_from_step_to_step_and_from_a_state() -> None:
    method, encoder = _moco()
    for _ in range(2):
        _loss(method, encoder, torch.rand(3, 1, 4, 4))
        keys = method._pending
        method.after_optimizer_step(encoder)
    assert keys is not None and torch.equal(method.queue[[3, 4, 0]], keys)
    again, _ = _moco()
    again.load_state_dict(method.state_dict())
    assert again.keys_seen == 6


def test_the_key_network_learns_nothing_itself() -> None:
    method, encoder = _moco()
    _loss(method, encoder, torch.rand(3, 1, 4, 4)).backward()
    assert all(weight.grad is None for weight in method.key.parameters())
    assert encoder.conv.weight.grad is not None and method.projector[0].weight.grad is not None


def test_logits_are_against_the_queue_as_it_was() -> None:
    method, encoder = _moco()
    views = torch.rand(2, 1, 4, 4)
    expected = _loss(method, encoder, views)
    method.after_optimizer_step(encoder)
    assert not torch.equal(_loss(method, encoder, views), expected), "the second step sees the first one's keys"


def test_validation_leaves_no_keys() -> None:
    method, encoder = _moco()
    method.eval()
    _loss(method, encoder, torch.rand(2, 1, 4, 4))
    assert method._pending is None


@pytest.mark.parametrize("setting", [{"temperature": 0.5}, {"queue_size": 9}, {"outputs": 4}])
def test_settings_of_moco_change_the_loss(setting: dict[str, float]) -> None:
    views = torch.rand(2, 1, 4, 4)
    assert not torch.equal(_loss(*_moco(), views), _loss(*_moco(**setting), views))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("barlow_twins", {"projector_width": 12}),
        ("barlow_twins", {"projector_width": 8, "off_diagonal": 0.5}),
        ("simsiam", {"outputs": 12, "bottleneck": 4}),
        ("simsiam", {"outputs": 8, "bottleneck": 6}),
    ],
)
def test_settings_of_the_other_methods_change_the_loss(name: str, setting: dict[str, float]) -> None:
    small = {"projector_width": 8} if name == "barlow_twins" else {"outputs": 8, "bottleneck": 4}
    losses = []
    for chosen in (small, setting):
        torch.manual_seed(0)
        method = METHODS[name].model_validate({"name": name, **chosen}).build(nn.Identity(), 6)
        features = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
        inputs = MethodInputs(nn.Identity(), features, second_view=features.roll(1, 1))
        losses.append(method(inputs, GlobalBatch((4,))).item())
    assert losses[0] != losses[1]


def test_losses_are_float32_under_autocast() -> None:
    method, encoder = _moco()
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(method, encoder, torch.rand(3, 1, 4, 4))
    assert loss.dtype == torch.float32 and method._pending is not None and method._pending.dtype == torch.float32


@pytest.mark.parametrize("sizes", [(4, 4), (8, 8, 8, 8), (22, 21, 21), (1, 1, 1), (3, 1), (5, 7, 2, 9)])
def test_rows_are_dealt_evenly_and_all_of_them(sizes: tuple[int, ...]) -> None:
    ranks = range(len(sizes))
    for seed in range(20):
        drawn = [RowExchange.draw(GlobalBatch(sizes, rank), seed, torch.device("cpu")) for rank in ranks]
        assert [sum(each.sent) for each in drawn] == list(sizes)
        assert [[each.sent[rank] for each in drawn] for rank in ranks] == [list(each.received) for each in drawn]
        received = [sum(each.received) for each in drawn]
        assert min(received) >= 1 and sum(received) == sum(sizes)
        if len(set(sizes)) == 1:
            assert received == list(sizes), "equal shares stay equal"


@pytest.mark.parametrize("share", [1, 2, 3])
def test_few_rows_leave_home_for_other_places_at_each_step(share: int) -> None:
    batch = GlobalBatch((share,) * 8, rank=5)
    sent = [RowExchange.draw(batch, seed, torch.device("cpu")).sent for seed in range(50)]
    assert all(each[5] == 0 for each in sent)
    assert all(sum(each[rank] for each in sent) for rank in range(8) if rank != 5), "every other worker gets some"


def test_share_weights_average_to_one() -> None:
    sizes = (22, 21, 21)
    weights = [GlobalBatch(sizes, rank).local_weight for rank in range(3)]
    assert sum(weights) / 3 == pytest.approx(1)
    means = [1.0, 2.0, 3.0]
    by_sample = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / sum(sizes)
    assert sum(w * m for w, m in zip(weights, means, strict=True)) / 3 == pytest.approx(by_sample)


FOURTH_METHOD = """
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import Method, MethodInputs, MethodSection, Need


class PullConfig(MethodSection):
    needs: ClassVar[frozenset[Need]] = frozenset({"maps", "labels", "distortion"})
    name: Literal["pull"] = "pull"
    strength: float = 2.0

    def build(self, encoder: nn.Module, features: int) -> "Pull":
        return Pull(self)


class Pull(Method):
    def __init__(self, config: PullConfig) -> None:
        super().__init__()
        self.strength = config.strength

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.pooled is None and inputs.second_view is None, "only what is asked for is given"
        wanted = torch.tensor([label["age"] for label in inputs.labels]) + inputs.distortion["kind"]
        return batch.local_weight * self.strength * (inputs.maps[-1].mean((1, 2, 3)) - wanted).square().mean()
"""

USE_OF_IT = """
import torch
from pydantic import TypeAdapter

from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import MethodConfig
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views

method = TypeAdapter(MethodConfig).validate_python({"name": "pull", "strength": 3.0})
networks = build_networks(UNetConfig(encoder="resnet18"), method, seed=0)
step = pretrain_step(networks, "dir", total_steps=2)
image = torch.rand(2, 1, 64, 64)
labels = ({"age": 0.5}, {"age": 2.0})
result = step(Views(image, None, image, torch.arange(2), {"kind": torch.tensor([0, 3])}, labels), 0)
assert result.finite and float(result.losses["discriminative"]) > 0
print("stepped")
"""


def test_a_fourth_method_is_one_more_file(tmp_path: Path) -> None:
    package = tmp_path / "dira_dist"
    shutil.copytree(Path(dira_dist.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "objectives" / "pull.py").write_text(textwrap.dedent(FOURTH_METHOD))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", USE_OF_IT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "stepped", ran.stderr


def test_unit_length_keys() -> None:
    method, encoder = _moco()
    _loss(method, encoder, torch.rand(3, 1, 4, 4))
    assert method._pending is not None
    torch.testing.assert_close(method._pending, F.normalize(method._pending, dim=1))
