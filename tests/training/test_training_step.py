"""The training step on one worker: parts, weights, guards, state, and each setting's effect."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dira_dist.config import RequestError
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import METHODS, AdversarialConfig
from dira_dist.objectives.barlow_twins import PUBLISHED_WORKERS
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.objectives.parts import LossWeights
from dira_dist.training.execution import ExecutionConfig, laid_out, prepare
from dira_dist.training.optimizer import OptimizerConfig, learning_rate
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.step import StepResult, TrainStep
from dira_dist.views import Views

MODEL = UNetConfig(encoder="tu-test_resnet", decoder_channels=(32, 16, 16, 8, 8))
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(8, 16, 16, 16)))
STEM, INNER = "encoder.model.conv1.0.weight", "encoder.model.layer2.0.conv1.weight"
SMALL: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 7, "outputs": 8},
    "barlow_twins": {"projector_width": 16},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}


def _networks(method: str = "moco_v2", model: UNetConfig = MODEL, seed: int = 0) -> PretrainNetworks:
    section = METHODS[method].model_validate({"name": method, **SMALL[method]})
    return build_networks(model, section, ADVERSARIAL, seed=seed)


def _views(batch: int = 2, seed: int = 0, size: int = 32) -> Views:
    generator = torch.Generator().manual_seed(seed)
    first, second, target = (torch.rand(batch, 1, size, size, generator=generator) for _ in range(3))
    return Views(first, second, target, torch.arange(batch))


def _step(objective: str = "dira", networks: PretrainNetworks | None = None, **settings: Any) -> TrainStep:
    return pretrain_step(networks or _networks(), objective, **{"total_steps": 10, **settings})


def _flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """A nested state as one mapping of copies."""
    if isinstance(state, dict):
        return {key: value for name in state for key, value in _flat(state[name], f"{prefix}{name}/").items()}
    return {prefix.removesuffix("/"): state.clone() if isinstance(state, Tensor) else state}


def _assert_same(found: Any, expected: Any) -> None:
    found, expected = _flat(found), _flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
        assert same, name


def _losses(result: StepResult) -> dict[str, float]:
    return {name: float(value) for name, value in result.losses.items()}


@pytest.mark.parametrize("method", ["moco_v2", "barlow_twins", "simsiam"])
@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ("di", {"discriminative"}),
        ("dir", {"discriminative", "restorative"}),
        ("dira", {"discriminative", "restorative", "adversarial", "discriminator"}),
        ("re", {"restorative"}),
        ("rea", {"restorative", "adversarial", "discriminator"}),
    ],
)
def test_each_method_in_each_stage(method: str, objective: str, parts: set[str]) -> None:
    networks = _networks(method)
    before = _flat(networks.state_dict())
    step = _step(objective, networks)
    result = step(_views(), 0)
    assert result.finite and result.losses.keys() == parts | {"total"}
    weights = {"discriminative": 1, "restorative": 10, "adversarial": 0.001}
    total = sum(weight * float(result.losses[name]) for name, weight in weights.items() if name in parts)
    assert float(result.losses["total"]) == pytest.approx(total)
    assert (result.output is None) == (objective == "di")
    after = _flat(networks.state_dict())
    moved = {".".join(name.split(".")[:2]) for name in after if _moved(before, after, name)}
    assert ("unet.decoder" in moved) == (objective != "di")
    assert ("discriminator.model" in moved) == (objective in ("dira", "rea"))
    assert "unet.encoder" in moved and ("method.projector" in moved) == objective.startswith("di")


def _moved(before: dict[str, Any], after: dict[str, Any], name: str) -> bool:
    return isinstance(after[name], Tensor) and not torch.equal(before[name], after[name])


def test_gradient_of_the_adversarial_part_is_that_of_the_plain_statement() -> None:
    """One shared pass of the discriminator gives what two separate ones give, and none of it is left on the other."""
    networks = _networks()
    weights = LossWeights(discriminative=0, restorative=0, adversarial=1)
    step = _step(networks=networks, weights=weights, execution=ExecutionConfig(channels_last=False))
    gradients: dict[str, Tensor] = {}
    for name, weight in networks.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.__setitem__(name, w.grad.clone()))
    plain = _networks()
    views = _views(batch=4, size=64)
    step(views, 0)
    restored = plain.unet(views.view_1)[1]
    (plain.discriminator(restored) - 1).square().mean().backward()
    expected = {name: weight.grad for name, weight in plain.unet.named_parameters() if weight.grad is not None}
    plain.discriminator.zero_grad()
    real, fake = plain.discriminator(views.target), plain.discriminator(restored.detach())
    (0.5 * ((real - 1).square().mean() + fake.square().mean())).backward()
    for name, weight in plain.discriminator.named_parameters():
        torch.testing.assert_close(gradients[f"discriminator.{name}"], weight.grad, rtol=1e-4, atol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[f"unet.{name}"], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "idle"),
    [
        ({"discriminative": 0}, "method"),
        ({"restorative": 0, "adversarial": 0}, "unet.decoder"),
        ({"adversarial": 0}, "discriminator"),
    ],
)
def test_a_part_that_weighs_nothing_is_not_computed(weights: dict[str, float], idle: str) -> None:
    networks = _networks()
    for module in networks.get_submodule(idle).modules():
        module.register_forward_hook(lambda *_: pytest.fail(f"{idle} ran"))
    step = _step(networks=networks, weights=LossWeights(**weights))
    result = step(_views(), 0)
    assert result.finite and not weights.keys() & result.losses.keys()
    assert not any(weight.requires_grad for weight in networks.get_submodule(idle).parameters())


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="discriminative"):
        _step("di", weights=LossWeights(discriminative=0))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LossWeights(restorative=-1)


@pytest.mark.parametrize("method", ["moco_v2", "simsiam"])
@pytest.mark.parametrize("bad", ["view_1", "view_2", "target"])
def test_a_step_that_is_not_finite_leaves_no_trace(method: str, bad: str) -> None:
    step = _step(networks=_networks(method))
    step(_views(), 0)
    before = _flat(step.state_dict())
    views = _views(seed=1)
    getattr(views, bad)[0, 0, 3, 3] = float("nan")
    result = step(views, 1)
    assert not result.finite
    _assert_same(step.state_dict(), before)
    assert step(_views(seed=1), 1).finite, "the next step is as if nothing had been"


def test_a_batch_of_one() -> None:
    assert _step(networks=_networks("moco_v2"))(_views(batch=1, size=64), 0).finite
    with pytest.raises(RequestError, match="at least 2 samples"):
        _step(networks=_networks("barlow_twins"))(_views(batch=1, size=64), 0)
    alone = _step(networks=_networks("simsiam"), weights=LossWeights(discriminative=0))
    assert alone(_views(batch=1, size=64), 0).finite


def test_state_goes_through_a_plain_file_and_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = _step(), _step(), _step(networks=_networks(seed=5))
    for number in range(2):
        whole(_views(seed=number), number)
    first(_views(seed=0), 0)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second(_views(seed=1), 1)
    _assert_same(second.state_dict(), whole.state_dict())


def test_state_of_other_networks_is_refused() -> None:
    other = build_networks(MODEL, MoCoV2Config(queue_size=9, outputs=8), ADVERSARIAL, seed=0)
    with pytest.raises(RequestError, match="queue"):
        _step(networks=other).load_state_dict(_step().state_dict())


def test_stages_go_on_with_nothing_lost() -> None:
    networks = _networks()
    first = _step("dira", networks)
    first(_views(), 0)
    saved = first.state_dict()
    expected = _flat(saved)
    middle = _step("di", networks)
    middle.load_state_dict(saved)
    _assert_same(middle.state_dict(), expected)
    middle(_views(seed=1), 0)
    last = _step("dira", networks)
    last.load_state_dict(middle.state_dict())
    state = last.state_dict()["optimizers"]["unet"]["state"]
    decoder = "unet.decoder.blocks.0.conv1.0.weight"
    assert torch.equal(state[decoder]["momentum_buffer"], expected[f"optimizers/unet/state/{decoder}/momentum_buffer"])
    encoder = f"unet.{STEM}"
    assert not torch.equal(
        state[encoder]["momentum_buffer"], expected[f"optimizers/unet/state/{encoder}/momentum_buffer"]
    )


def test_optimizers_start_anew_by_choice_or_when_of_another_kind() -> None:
    first = _step()
    first(_views(), 0)
    saved = first.state_dict()
    anew = _step()
    anew.load_state_dict(saved, optimizers=False)
    assert anew.state_dict()["optimizers"]["unet"]["state"] == {}
    other = _step(optimizer=OptimizerConfig(name="adamw"))
    other.load_state_dict(saved)
    assert other.state_dict()["optimizers"]["unet"]["state"] == {}
    assert other.state_dict()["optimizers"]["discriminator"]["state"] != {}


def test_networks_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = _networks().state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    _assert_same(_networks().state_dict(), first)
    assert not torch.equal(_networks(seed=1).state_dict()[f"unet.{STEM}"], first[f"unet.{STEM}"])
    torch.set_rng_state(state)


def test_networks_start_from_given_weights(tmp_path: Path) -> None:
    given = _networks(seed=3).unet.state_dict()
    torch.save(given, tmp_path / "weights.pt")
    from_file = _networks(model=MODEL.model_copy(update={"init": str(tmp_path / "weights.pt")}))
    handed = build_networks(MODEL, MoCoV2Config(queue_size=7, outputs=8), seed=0, weights=given)
    for networks in (from_file, handed):
        _assert_same(networks.unet.state_dict(), given)
        _assert_same(networks.method.key.encoder.state_dict(), networks.unet.encoder.state_dict())


def test_checkpointing_gives_the_same_step() -> None:
    plain = _step()
    recomputing = _step(networks=_networks(model=MODEL.model_copy(update={"gradient_checkpointing": True})))
    for number in range(2):
        expected, found = (each(_views(seed=number), number) for each in (plain, recomputing))
        assert _losses(found) == pytest.approx(_losses(expected), rel=1e-6)
    for name, buffer in plain.networks.named_buffers():
        torch.testing.assert_close(recomputing.networks.get_buffer(name), buffer, rtol=1e-6, atol=1e-7)


def test_bf16_rounds_networks_but_not_losses() -> None:
    views = _views()
    expected, found = _step(precision="fp32")(views, 0), _step(precision="bf16")(views, 0)
    assert _losses(found) != _losses(expected)
    assert _losses(found) == pytest.approx(_losses(expected), rel=0.05)
    assert found.output is not None and found.output.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in found.losses.values())


def test_channels_last_changes_the_layout_and_no_figure() -> None:
    views, figures = _views(batch=4, size=64), {}
    for channels_last in (True, False):
        step = _step(execution=ExecutionConfig(channels_last=channels_last))
        weight = step.networks.unet.get_parameter(INNER)
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        figures[channels_last] = _losses(step(views, 0))
    assert figures[True] == pytest.approx(figures[False], rel=1e-3)


@pytest.mark.parametrize(("axes", "layout"), [(4, torch.channels_last), (5, torch.channels_last_3d)])
def test_images_and_volumes_are_laid_out_alike(axes: int, layout: torch.memory_format) -> None:
    images = torch.rand(2, 3, *(4,) * (axes - 2))
    for channels_last in (True, False):
        found = laid_out(images, ExecutionConfig(channels_last=channels_last))
        assert torch.equal(found, images)
        assert found.is_contiguous(memory_format=layout) == channels_last
        assert found.is_contiguous() != channels_last


def test_compile_reaches_every_network() -> None:
    step = _step(execution=ExecutionConfig(compile=True))
    networks = step.networks
    for module in (networks.unet, networks.discriminator, networks.method.key):
        assert module._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):
        assert step(_views(), 0).finite
    assert not any("_orig_mod" in name for name in networks.state_dict())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_step_is_the_eager_one(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced through the compiler's front and its autograd, without generated kernels, whose making takes minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    states, losses = [], []
    for compiled in (False, True):
        networks = _networks(model=MODEL.model_copy(update={"gradient_checkpointing": checkpointing}))
        state, found = None, []
        for objective, batch in (("di", 4), ("dira", 2)):
            step = _step(objective, networks, execution=ExecutionConfig(compile=compiled))
            if state is not None:
                step.load_state_dict(state)
            found += [_losses(step(_views(batch=batch, seed=number, size=64), number)) for number in range(2)]
            state = step.state_dict()
        states.append({name: value for name, value in _flat(state).items() if isinstance(value, Tensor)})
        losses.append(found)
    for eager, compiled_ in zip(*losses, strict=True):
        assert compiled_ == pytest.approx(eager, rel=1e-4)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", SMALL)
def test_a_gpu_takes_the_same_steps(method: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found: dict[str, list[dict[str, float]]] = {}
    for device in ("cpu", "cuda"):
        networks = _networks(method, MODEL.model_copy(update={"gradient_checkpointing": checkpointing}))
        step = _step(networks=networks, device=device)
        views = [_views(batch=4, seed=number, size=64) for number in range(3)]
        moved = [Views(*(each.to(device) for each in vars(view).values())) for view in views]
        found[device] = [_losses(step(view, number)) for number, view in enumerate(moved)]
    for on_cpu, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-2)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-4)


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_adversarial_loss_is_a_choice(kind: str) -> None:
    views = _views()
    default, chosen = _step()(views, 0), _step(adversarial=AdversarialConfig(loss=kind))(views, 0)
    assert float(chosen.losses["adversarial"]) != float(default.losses["adversarial"])
    assert float(chosen.losses["discriminator"]) != float(default.losses["discriminator"])


@pytest.mark.parametrize("setting", [{"lr": 1e-3}, {"betas": (0.9, 0.99)}])
def test_settings_of_the_discriminator(setting: dict[str, Any]) -> None:
    weights = []
    for adversarial in (AdversarialConfig(), AdversarialConfig(**setting)):
        step = _step(adversarial=adversarial)
        for number in range(2):
            step(_views(seed=number), number)
        weights.append(step.networks.discriminator.model[0].weight)
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "adamw"},
        {"name": "lars"},
        {"lr": 0.01},
        {"lr_batch": 4},
        {"bias_lr_factor": 0.1},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"warmup_epochs": 1},
        {"schedule": "constant"},
        {"schedule": "step", "halve_every_epochs": 1},
    ],
)
def test_settings_of_the_optimizer(setting: dict[str, Any]) -> None:
    weights = []
    for optimizer in (OptimizerConfig(), OptimizerConfig.model_validate(setting)):
        step = _step("di", optimizer=optimizer, steps_per_epoch=3, global_batch=2)
        for number in range(2):
            step(_views(seed=number), number)
        weights.append(step.networks.unet.get_parameter(STEM))
    assert not torch.equal(*weights)


def test_lars_moves_each_kernel_by_a_share_of_its_norm() -> None:
    config = OptimizerConfig(
        name="lars", lr=0.2, lr_batch=None, bias_lr_factor=0.024, weight_decay=0, schedule="constant", warmup_epochs=0
    )
    step = _step(optimizer=config)
    before = {name: weight.clone() for name, weight in step.networks.unet.named_parameters()}
    gradients: dict[str, Tensor] = {}
    for name, weight in step.networks.unet.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.__setitem__(name, w.grad.clone()))
    step(_views(), 0)
    for name, weight in step.networks.unet.named_parameters():
        moved = (weight - before[name]).norm()
        if weight.ndim > 1 and gradients[name].norm() > 1e-6:
            torch.testing.assert_close(moved, 0.2 * 0.001 * before[name].norm(), rtol=1e-2, atol=0)
        elif weight.ndim == 1:
            torch.testing.assert_close(moved, 0.2 * 0.024 * gradients[name].norm(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("method", ["moco_v2", "barlow_twins", "simsiam"])
def test_the_first_steps_of_a_method_leave_the_encoder_in_bounds(method: str) -> None:
    settings = {"projector_width": 2048} if method == "barlow_twins" else {}
    section = METHODS[method].model_validate({"name": method, **settings})
    networks = build_networks(UNetConfig(encoder="resnet18"), section, ADVERSARIAL, seed=0)
    own = {"lr_batch": None, "warmup_epochs": 0}  # the rate of a whole batch, from the first step on
    step = _step("di", networks, optimizer=OptimizerConfig.model_validate({**section.own_optimizer, **own}))
    before = _norm(networks.unet.encoder)
    for number in range(2):
        step(_views(batch=4, seed=number, size=64), number)
    assert _norm(networks.unet.encoder) == pytest.approx(before, rel=0.2)


def test_barlow_twins_moves_no_norm_far_in_a_step_at_its_full_rate() -> None:
    """At the paper's share of the rate, with the whole gradient, a weight of a norm moves by 0.4."""
    section = METHODS["barlow_twins"].model_validate({"name": "barlow_twins", "projector_width": 2048})
    own = OptimizerConfig.model_validate({**section.own_optimizer, "lr_batch": None, "warmup_epochs": 0})
    moved = {}
    for factor in (own.bias_lr_factor, own.bias_lr_factor * PUBLISHED_WORKERS):
        networks = build_networks(UNetConfig(encoder="resnet18"), section, ADVERSARIAL, seed=0)
        norms = [each.weight for each in networks.modules() if isinstance(each, _BatchNorm)]
        step = _step("di", networks, optimizer=own.model_copy(update={"bias_lr_factor": factor}))
        step(_views(batch=16, size=64), 0)
        moved[factor] = max(float((weight.detach() - 1).abs().max()) for weight in norms)
    assert moved[own.bias_lr_factor] < 0.05 and max(moved.values()) > 0.4, moved


def test_the_predictors_rate_follows_no_schedule() -> None:
    steps = {}
    for number in (0, 9):  # the first and the last of ten, from the same weights
        networks = _networks("simsiam")
        before = {name: weight.clone() for name, weight in networks.named_parameters()}
        step = _step("di", networks, optimizer=OptimizerConfig(lr=0.1, weight_decay=0))
        step(_views(), number)
        steps[number] = {name: weight.detach() - before[name] for name, weight in networks.named_parameters()}
    for name, first in steps[0].items():
        share = 1 if name.startswith("method.predictor.") else learning_rate(OptimizerConfig(lr=1), 9, 10, 1.0)
        torch.testing.assert_close(steps[9][name], share * first, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_constant_rate_goes_on_from_a_state(optimizer: str) -> None:
    config = OptimizerConfig(name=optimizer, warmup_epochs=0)
    whole, first, second = (_step("di", _networks("simsiam", seed=seed), optimizer=config) for seed in (0, 0, 5))
    for number in range(2):
        whole(_views(seed=number), number)
    first(_views(seed=0), 0)
    second.load_state_dict(first.state_dict())
    second(_views(seed=1), 1)
    _assert_same(second.state_dict(), whole.state_dict())


def test_the_rate_is_for_the_batch_at_hand() -> None:
    config = OptimizerConfig(lr=0.5, lr_batch=8, schedule="constant")
    assert _step(optimizer=config, global_batch=2)(_views(batch=2), 0).learning_rate == 0.5 * 2 / 8
    assert _step(optimizer=config.model_copy(update={"lr_batch": None}))(_views(batch=2), 0).learning_rate == 0.5


def _norm(module: nn.Module) -> float:
    return float(torch.nn.utils.get_total_norm(list(module.parameters())))


def test_learning_rate_by_step() -> None:
    cosine = OptimizerConfig(lr=2.0, warmup_epochs=2)
    rates = [learning_rate(cosine, step, steps=20, steps_per_epoch=2.0) for step in range(21)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[12] == pytest.approx(1.0) and rates[20] == pytest.approx(0.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    halved = OptimizerConfig(lr=2.0, schedule="step", halve_every_epochs=3, warmup_epochs=1)
    found = [learning_rate(halved, step, steps=20, steps_per_epoch=2.0) for step in range(20)]
    assert found[2:] == [2.0] * 6 + [1.0] * 6 + [0.5] * 6 and found[0] < found[1] < 2
    constant = OptimizerConfig(lr=2.0, schedule="constant")
    assert {learning_rate(constant, step, 20, 2.0) for step in range(20)} == {2.0}


def test_batch_norms_of_the_key_encoder_are_never_synchronised() -> None:
    networks = _networks()
    assert list(networks.trainable_parts()) == [networks.unet, networks.method.projector]


def test_synchronised_norms_keep_their_activations_from_stage_to_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = _networks(model=UNetConfig(encoder="tu-efficientnet_b0"))
    active = sum(isinstance(module, BatchNormAct2d) for module in networks.unet.modules())
    monkeypatch.setattr("dira_dist.training.execution.is_distributed", lambda: True)
    for _ in range(2):
        prepare(networks, torch.device("meta"), ExecutionConfig(sync_batchnorm=True))
    assert active == sum(isinstance(module, SyncBatchNormAct) for module in networks.unet.modules()) > 0
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in networks.method.key.modules())


def test_synchronised_batch_norm_has_no_effect_on_one_worker() -> None:
    step = _step(execution=ExecutionConfig(sync_batchnorm=True))
    norms = [module for module in step.networks.modules() if isinstance(module, _BatchNorm)]
    assert norms and not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
