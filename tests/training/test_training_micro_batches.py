"""A step that takes its samples part by part beside one that takes them at once, in 2D and 3D, in float64."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dira_dist.config import RequestError
from dira_dist.models.backbone import Backbone, BackboneSection
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import METHODS, AdversarialConfig, GlobalBatch
from dira_dist.objectives.parts import Objective
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.feature_cache import FeatureCache
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.step import StepResult, TrainStep
from dira_dist.views import Views, take_rows

ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(4, 8)))
SMALL: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 11, "outputs": 8, "momentum": 0.9},
    "barlow_twins": {"projector_width": 16},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}
PLAIN = OptimizerConfig(lr=1e-2, momentum=0.9, weight_decay=0, schedule="constant")


class TinySection(BackboneSection):
    """Group norms keep samples apart."""

    name: Literal["tiny"] = "tiny"

    def build(self) -> "Tiny":
        return Tiny(self)

    def check_image_size(self, image_size: Any) -> None: ...

    def unused_parameters(self, restore: bool) -> set[str]:
        return set() if restore else {f"out.{name}" for name in ("weight", "bias")}


class TinySection3d(TinySection):
    dims: ClassVar[Literal[2, 3]] = 3


class TinyEncoder(nn.Module):
    def __init__(self, section: TinySection) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[section.dims - 2]
        self.first, self.second = convolution(1, 8, 3, padding=1), convolution(8, 8, 3, padding=1, stride=2)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)])

    def forward(self, image: Tensor) -> list[Tensor]:
        whole = self.norms[0](self.first(image)).relu()
        return [whole, self.norms[1](self.second(whole)).relu()]


class Tiny(Backbone):
    def __init__(self, section: TinySection) -> None:
        super().__init__()
        self.config, self.channels = section, 8
        self.encoder = TinyEncoder(section)
        self.out = (nn.Conv2d, nn.Conv3d)[section.dims - 2](8, 1, 3, padding=1)

    def decode(self, maps: list[Tensor]) -> Tensor:
        restored: Tensor = self.out(maps[0]).sigmoid()
        return restored


def _networks(method: str, section: BackboneSection) -> PretrainNetworks:
    settings = METHODS[method].model_validate({"name": method, **SMALL[method]})
    return build_networks(section, settings, ADVERSARIAL, seed=0).double()


def _views(shape: tuple[int, ...], seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    first, second, target = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return Views(first, second, target, torch.arange(shape[0]))


def _step(networks: PretrainNetworks, objective: Objective, micro_batch: int | None) -> TrainStep[Views]:
    return pretrain_step(
        networks,
        objective,
        optimizer=PLAIN,
        adversarial=ADVERSARIAL,
        execution=ExecutionConfig(micro_batch=micro_batch),
        total_steps=9,
    )


def _state(step: TrainStep[Any]) -> dict[str, Tensor]:
    """Copies of every weight, buffer and moment."""
    saved = step.state_dict()
    found = {name: value for name, value in saved["networks"].items() if isinstance(value, Tensor)}
    for name, optimizer in saved["optimizers"].items():
        for weight, moments in optimizer["state"].items():
            found |= {f"{name}/{weight}/{key}": value for key, value in moments.items() if isinstance(value, Tensor)}
    return {name: value.clone() for name, value in found.items()}


def _run(step: TrainStep[Views], shape: tuple[int, ...], steps: int = 2) -> list[StepResult]:
    return [step(_views(shape, seed=number), number) for number in range(steps)]


def _assert_alike(found: TrainStep[Any], expected: TrainStep[Any]) -> None:
    there, here = _state(expected), _state(found)
    assert there.keys() == here.keys()
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("section", [TinySection(), TinySection3d()], ids=["2d", "3d"])
@pytest.mark.parametrize(
    ("method", "objective"), [*((method, stage) for method in SMALL for stage in ("di", "dira")), ("moco_v2", "rea")]
)
def test_parts_learn_what_the_whole_batch_does(
    method: str, objective: Objective, section: TinySection, micro_batch: int
) -> None:
    """Weights, moments, discriminator and queue after two steps of seven samples, in parts of uneven size."""
    whole, parts = (_step(_networks(method, section), objective, size) for size in (None, micro_batch))
    shape = (7, 1, *(8,) * section.dims)
    expected, found = _run(whole, shape), _run(parts, shape)
    _assert_alike(parts, whole)
    for one, other in zip(found, expected, strict=True):
        assert one.finite and one.losses.keys() == other.losses.keys()
        for name, loss in other.losses.items():
            torch.testing.assert_close(one.losses[name], loss, rtol=1e-6, atol=1e-6, msg=name)
        torch.testing.assert_close(one.output, other.output, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", SMALL)
def test_a_unet_whose_batch_norms_stay_and_is_checkpointed(method: str) -> None:
    model = UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8), gradient_checkpointing=True)
    steps = [_step(_networks(method, model), "dira", size) for size in (None, 3)]
    for step in steps:
        for module in (*step.networks.unet.modules(), *getattr(step.networks.method, "key", nn.Module()).modules()):
            if isinstance(module, _BatchNorm):
                module.eval()
        _run(step, (5, 1, 32, 32))
    _assert_alike(steps[1], steps[0])


def test_batch_norms_see_a_part_and_count_each_once() -> None:
    model = UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8))
    views = _views((4, 1, 32, 32))
    step = _step(_networks("simsiam", model), "dir", 2)
    norm = next(module for module in step.networks.unet.encoder.modules() if isinstance(module, _BatchNorm))
    before = norm.running_mean.clone()
    first = step.networks.unet.encoder.model.conv1[0]
    seen = [first(part).mean((0, 2, 3)) for view in (views.view_1, views.view_2) for part in view.split(2)]
    step(views, 0)
    assert int(norm.num_batches_tracked) == 4, "two parts of two views"
    expected = before
    for mean in (seen[0], seen[2], seen[1], seen[3]):
        expected = (1 - norm.momentum) * expected + norm.momentum * mean
    torch.testing.assert_close(norm.running_mean, expected.detach())


def test_keys_pass_in_parts_among_other_samples_than_their_queries() -> None:
    """Else their batch norms tell a query's own part."""
    networks = _networks("moco_v2", TinySection())
    step, views = _step(networks, "di", 4), _views((16, 1, 8, 8))
    dealt: list[list[float]] = []
    networks.method.key.register_forward_pre_hook(lambda _, given: dealt.append(given[0].mean((1, 2, 3)).tolist()))
    step(views, 0)
    own = views.view_2.mean((1, 2, 3)).tolist()
    assert [len(part) for part in dealt] == [4, 4, 4, 4]
    assert sorted(mean for part in dealt for mean in part) == pytest.approx(sorted(own))
    assert all(set(part) != set(own[start : start + 4]) for part in dealt for start in range(0, 16, 4))


def test_dropout_of_the_second_pass_is_that_of_the_first() -> None:
    """Beside one graph through both passes' parts, whose random numbers are those of the cache."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    views, parts = [torch.rand(7, 5, dtype=torch.float64) for _ in range(2)], [slice(0, 4), slice(4, 7)]

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return (first.T @ second).square().sum()

    torch.manual_seed(1)
    plain = [torch.cat([network(view[rows]) for rows in parts]) for view in views]
    expected = torch.autograd.grad(loss(*plain), list(network.parameters()))
    torch.manual_seed(1)
    cache = FeatureCache(network, network, parts)
    loss(*(cache.encode(view) for view in views)).backward()
    assert all(weight.grad is None for weight in network.parameters())
    for number, rows in enumerate(parts):
        cache.rewind(number)
        cache.pull(number, network(views[0][rows])).backward()
    for weight, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", ["view_1", "target"])
@pytest.mark.parametrize("method", SMALL)
def test_a_bad_sample_in_one_part_undoes_all_of_them(method: str, bad: str) -> None:
    model = UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8))
    step, shape = _step(_networks(method, model), "dira", 2), (4, 1, 32, 32)
    step(_views(shape), 0)
    before, views = _state(step), _views(shape, seed=1)
    getattr(views, bad)[3, 0, 0, 0] = torch.nan
    assert not step(views, 1).finite
    after = _state(step)
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    assert step(_views(shape, seed=2), 2).finite


def test_a_method_of_feature_maps_takes_its_batch_whole() -> None:
    networks = _networks("moco_v2", TinySection())
    networks.needs = frozenset({"maps", "second_view"})
    with pytest.raises(RequestError, match=r"micro_batch.*gradient_checkpointing"):
        _step(networks, "di", 2)
    _step(networks, "re", 2)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 10) | st.none())
def test_parts_of_all_workers(sizes: list[int], most: int | None) -> None:
    low = min(sizes)
    sizes = [low + min(size - low, 1) for size in sizes]  # shares of a global batch differ by one sample at most
    workers = [GlobalBatch(tuple(sizes), rank) for rank in range(len(sizes))]
    divided = [worker.parts(most) for worker in workers]
    assert len({len(parts) for parts in divided}) == 1, "collectives of their passes meet"
    for worker, parts in zip(workers, divided, strict=True):
        rows = [row for part, _ in parts for row in range(worker.local_size)[part]]
        assert rows == list(range(worker.local_size))
        lengths = [part.stop - part.start for part, _ in parts]
        assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
        assert most is None or max(lengths) <= max(most, -(-max(sizes) // min(sizes)))
        assert sum(part.local_weight for _, part in parts) == pytest.approx(worker.local_weight)


def test_rows_of_all_fields() -> None:
    views = replace(_views((3, 1, 4, 4)), labels=({"a": 1}, {"a": 2}, {"a": 3}), distortion={"kind": torch.arange(3)})
    taken = take_rows(views, slice(1, 3))
    assert len(taken) == 2 and taken.labels == ({"a": 2}, {"a": 3}) and taken.distortion["kind"].tolist() == [1, 2]
    assert (
        taken.target is not None and torch.equal(taken.target, views.target[1:]) and taken.sample_ids.tolist() == [1, 2]
    )
    assert take_rows(replace(views, view_2=None), slice(0, 1)).view_2 is None
