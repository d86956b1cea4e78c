"""What restorative methods bring beside DiRA: labels of a distortion or a sample, a critic, absolute errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dira_dist.models.unet3d import UNet3dConfig
from dira_dist.objectives import (
    METHODS,
    AdversarialConfig,
    GlobalBatch,
    Opponent,
    RestorativeConfig,
    adversarial_loss,
    discriminator_input,
    discriminator_loss,
    restorative_loss,
)
from dira_dist.objectives.adversarial import gradient_penalty
from dira_dist.objectives.method import MethodInputs
from dira_dist.objectives.rubik import rubik_losses
from dira_dist.objectives.visual_words import word_loss
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views, ViewsConfig, make_views
from dira_dist.views.distortions import Rubik

SIZE = (16, 16, 16)
NARROW = DiscriminatorConfig(channels=(4, 8))
SETTINGS: dict[str, dict[str, Any]] = {
    "rubik": {"orders": 12, "hidden": 8},
    "visual_words": {"words": 5},
    "simsiam": {"outputs": 8, "bottleneck": 4},
    "moco_v2": {"outputs": 8, "queue_size": 7},
    "barlow_twins": {"projector_width": 8},
}
OBJECTIVES = ("di", "dir", "dira", "re", "rea")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def networks(method: str, adversarial: AdversarialConfig, **model: Any) -> PretrainNetworks:
    section = METHODS[method].model_validate({"name": method, **SETTINGS[method]})
    config = UNet3dConfig(**{"width": 4, "levels": 2, **model})
    return build_networks(config, section, adversarial, seed=0)


def views(distortion: dict[str, Any], batch: int = 4) -> Views:
    """Distorted cubes whose samples have a word each."""
    cubes = (random(batch, 1, *SIZE) * 65535).to(torch.int32).to(torch.uint16)
    made = make_views(
        cubes,
        torch.tensor([SIZE] * batch),
        torch.arange(batch),
        torch.zeros(batch, dtype=torch.long),
        seed=0,
        image_size=SIZE,
        in_channels=1,
        config=ViewsConfig.model_validate({"distortion": distortion}),
    )
    return Views(**{**vars(made), "labels": tuple({"word": number % 5} for number in range(batch))})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("method", "distortion"),
    [
        ("rubik", "rubik"),
        ("visual_words", "transvw"),
        ("simsiam", "models_genesis"),
        ("moco_v2", "rubik"),
        ("barlow_twins", "transvw"),
    ],
)
def test_every_part_of_every_lift_learns(method: str, distortion: str, objective: Any) -> None:
    adversarial = AdversarialConfig(loss="wgan_gp", conditional=True, discriminator=NARROW)
    found = networks(method, adversarial)
    before = {name: value.clone() for name, value in found.state_dict().items() if isinstance(value, Tensor)}
    settings = {"name": distortion, **({"orders": 12} if distortion == "rubik" else {})}
    result = pretrain_step(found, objective, adversarial=adversarial, total_steps=2)(views(settings), 0)
    assert result.finite and all(torch.isfinite(loss) for loss in result.losses.values())
    after = found.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    parts = {"unet"} | ({"method"} if "di" in objective else set()) | ({"discriminator"} if "a" in objective else set())
    assert moved == parts


def test_labels_of_rubik_are_learned_by_the_rubik_losses() -> None:
    """The method's loss against loops, over the pieces' own features."""
    order_logits, turn_logits = random(3, 6) * 4 - 2, random(3, 8, seed=1) * 4 - 2
    order, turned = torch.tensor([5, 0, 2]), (random(3, 8, seed=2) < 0.75).long()
    found = rubik_losses(order_logits, turn_logits, order, turned)
    crosses = [-(row[k] - row.exp().sum().log()) for row, k in zip(order_logits, order, strict=True)]
    turns = []
    for row, targets in zip(turn_logits, turned, strict=True):
        for logit, target in zip(row, targets, strict=True):
            chance = 1 / (1 + (-logit).exp())
            turns.append(-(chance if target else 1 - chance).log())
    assert float(found[0]) == pytest.approx(float(sum(crosses) / 3))
    assert float(found[1]) == pytest.approx(float(sum(turns) / 24))


@pytest.mark.parametrize("axes", [2, 3])
def test_rubik_sees_each_piece_at_its_place(axes: int) -> None:
    """Features of the g-th piece are the mean over its place, in the order of the distortion's labels."""
    pieces = 2**axes
    section = METHODS["rubik"].model_validate({"name": "rubik", "orders": 5, "pieces": pieces, "hidden": 4})
    method = section.build(torch.nn.Identity(), 3)
    deepest = random(2, 3, *(4,) * axes).float()
    found = method._pieces(deepest)
    config = Rubik(gap=0)
    for number in range(pieces):
        source = torch.arange(pieces).roll(-number).expand(2, -1)
        moved = config.distort(
            deepest.clone(),
            type(config.draw(torch.zeros(1, 2, dtype=torch.long), (4,) * axes))(
                torch.zeros(2), source, torch.zeros(2, pieces, dtype=torch.long)
            ),
        )
        first = moved[(slice(None), slice(None), *(slice(0, 2),) * axes)].flatten(2).mean(2)
        torch.testing.assert_close(found[:, 3 * number : 3 * number + 3], first)


@pytest.mark.parametrize("setting", [{"order_weight": 0.5}, {"turn_weight": 0.0}, {"hidden": 5}])
def test_settings_of_rubik_change_the_loss(setting: dict[str, Any]) -> None:
    losses = []
    for chosen in ({}, setting):
        torch.manual_seed(0)
        section = METHODS["rubik"].model_validate({"name": "rubik", "orders": 6, "pieces": 4, "hidden": 4, **chosen})
        method = section.build(torch.nn.Identity(), 3)
        labels = {"order": torch.tensor([5, 1]), "turned": torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])}
        inputs = MethodInputs(torch.nn.Identity(), maps=[random(2, 3, 4, 4).float()], distortion=labels)
        losses.append(float(method(inputs, GlobalBatch((2,)))))
    assert losses[0] != losses[1]


def words_of(labels: list[Any], words: int = 4) -> Tensor:
    torch.manual_seed(0)
    section = METHODS["visual_words"].model_validate({"name": "visual_words", "words": words})
    method = section.build(torch.nn.Conv3d(1, 3, 3), 3)
    maps = [random(len(labels), 3, 4, 4, 4).float()]
    inputs = MethodInputs(torch.nn.Identity(), maps=maps, labels=tuple({"word": each} for each in labels))
    return method(inputs, GlobalBatch((len(labels),)))


def test_words_are_classified() -> None:
    logits, words = random(3, 4) * 3, torch.tensor([2, 0, 3])
    wanted = sum(-(row[k] - row.exp().sum().log()) for row, k in zip(logits, words, strict=True)) / 3
    assert float(word_loss(logits, words)) == pytest.approx(float(wanted))
    assert torch.equal(words_of([0, 3, 1]), words_of(["0", 3.0, "1"])), "numbers however they are written"
    assert not torch.equal(words_of([0, 3, 1]), words_of([0, 3, 2]))
    for wrong in (4, -1, "lung", None, 1.5):
        with pytest.raises(RequestError, match="words are numbers from 0 to 3"):
            words_of([0, wrong])


def test_a_set_without_words_is_refused() -> None:
    section = METHODS["visual_words"].model_validate({"name": "visual_words", "words": 3})
    section.check_labels({"word": ("0", "2"), "age": None})
    section.check_labels({"word": None})
    with pytest.raises(RequestError, match="'word' is none of its labels; known: age"):
        section.check_labels({"age": None})
    with pytest.raises(RequestError, match="has the value '3', and words are numbers from 0 to 2"):
        section.check_labels({"word": ("0", "3")})


def test_absolute_and_squared_errors() -> None:
    one, other = random(2, 1, 3, 4), random(2, 1, 3, 4, seed=1)
    pairs = list(zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))
    assert float(restorative_loss(one, other)) == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    assert float(restorative_loss(one, other, "mae")) == pytest.approx(sum(abs(a - b) for a, b in pairs) / len(pairs))


def test_the_restorative_loss_is_a_choice() -> None:
    losses = []
    for kind in ("mse", "mae"):
        found = networks("simsiam", AdversarialConfig())
        step = pretrain_step(found, "re", restorative=RestorativeConfig(loss=kind), total_steps=2)
        losses.append(float(step(views({"name": "dira"}), 0).losses["restorative"]))
    assert losses[1] > losses[0] > 0


def test_a_critic_minimises_the_difference_of_its_scores() -> None:
    real, restored = random(2, 1, 3, 3), random(2, 1, 3, 3, seed=1)
    assert float(discriminator_loss(real, restored, "wgan_gp")) == pytest.approx(float(restored.mean() - real.mean()))
    assert float(adversarial_loss(restored, "wgan_gp")) == pytest.approx(-float(restored.mean()))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_penalty_equals_plain_autograd(axes: int, conditional: bool) -> None:
    """Sample after sample, its slope by differences and its weights' gradients by autograd of the sum."""
    torch.manual_seed(0)
    critic = PatchDiscriminator(NARROW, axes, 1 + conditional).double()
    shape = (3, 1, *(8,) * axes)
    target, restoration, distorted = (random(*shape, seed=seed) for seed in range(3))
    mix = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    opponent = Opponent(critic, AdversarialConfig(loss="wgan_gp", gradient_penalty=7.0, conditional=conditional))
    found = opponent(target, restoration, distorted if conditional else None, mix)
    found.backward()
    gradients = [weight.grad.clone() for weight in critic.parameters()]
    critic.zero_grad()
    penalties, scores = [], []
    for n in range(3):
        beside = distorted[n : n + 1] if conditional else None
        between = (mix[n] * target[n : n + 1] + (1 - mix[n]) * restoration[n : n + 1]).requires_grad_()
        (slope,) = torch.autograd.grad(critic(discriminator_input(between, beside)).mean(), between, create_graph=True)
        penalties.append((slope.square().sum().sqrt() - 1) ** 2)
        score = [critic(discriminator_input(each[n : n + 1], beside)).mean() for each in (restoration, target)]
        scores.append(score[0] - score[1])
    wanted = sum(scores) / 3 + 7 * sum(penalties) / 3
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()))
    for gradient, weight in zip(gradients, critic.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)


def test_the_penalty_is_the_slope_that_differences_find() -> None:
    image = random(1, 1, 4, 4).requires_grad_()
    weights = random(1, 1, 4, 4, seed=3)

    def score(x: Tensor) -> Tensor:
        return (x**2 * weights).sum().view(1, 1, 1, 1)

    steps = torch.eye(16, dtype=torch.float64).view(16, 1, 1, 4, 4) * 1e-5
    slopes = torch.stack([(score(image + step) - score(image - step)).squeeze() / 2e-5 for step in steps])
    assert float(gradient_penalty(score(image), image)) == pytest.approx(float((slopes.norm() - 1) ** 2), rel=1e-6)


@pytest.mark.parametrize(
    "setting",
    [{"loss": "wgan_gp"}, {"loss": "wgan_gp", "gradient_penalty": 0.5}, {"loss": "wgan_gp", "conditional": True}],
)
def test_settings_of_the_critic_change_what_it_learns(setting: dict[str, Any]) -> None:
    base = {"discriminator": NARROW} if setting == {"loss": "wgan_gp"} else {"discriminator": NARROW, "loss": "wgan_gp"}
    found = []
    for chosen in ({}, setting):
        adversarial = AdversarialConfig(**{**base, **chosen})
        step = pretrain_step(networks("simsiam", adversarial), "rea", adversarial=adversarial, total_steps=2)
        found.append(float(step(views({"name": "dira"}), 0).losses["discriminator"]))
    assert found[0] != found[1]


@pytest.mark.parametrize("execution", [{"micro_batch": 1}, {"micro_batch": 3}])
def test_a_critic_learns_the_same_in_parts(execution: dict[str, Any]) -> None:
    """U-Net without batch norms in training, whose statistics are a part's."""
    found = []
    for chosen in ({}, execution):
        adversarial = AdversarialConfig(loss="wgan_gp", conditional=True, discriminator=NARROW)
        built = networks("simsiam", adversarial, norm="instance").double()
        step = pretrain_step(built, "rea", adversarial=adversarial, execution=ExecutionConfig(**chosen), total_steps=2)
        made = views({"name": "models_genesis"})
        doubled = {
            key: each.double() if torch.is_tensor(each) and each.is_floating_point() else each
            for key, each in vars(made).items()
        }
        step(Views(**doubled), 0)
        found.append({name: each for name, each in built.state_dict().items() if isinstance(each, Tensor)})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-10, msg=name)


def test_checkpointing_of_activations_changes_nothing() -> None:
    found = []
    for checkpointing in (False, True):
        adversarial = AdversarialConfig(loss="wgan_gp", conditional=True, discriminator=NARROW)
        built = networks("rubik", adversarial, gradient_checkpointing=checkpointing)
        step = pretrain_step(built, "dira", adversarial=adversarial, total_steps=2)
        step(views({"name": "rubik", "orders": 12}), 0)
        found.append(built.state_dict())
    for name, value in found[0].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.parametrize("method", ["rubik", "visual_words"])
def test_methods_of_maps_do_not_pass_in_parts(method: str) -> None:
    with pytest.raises(RequestError, match=r"execution.micro_batch.*gradient_checkpointing"):
        pretrain_step(
            networks(method, AdversarialConfig()), "di", execution=ExecutionConfig(micro_batch=2), total_steps=1
        )


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert words_of([0, 1]).dtype == torch.float32
        critic = PatchDiscriminator(NARROW, 2)
        opponent = Opponent(critic, AdversarialConfig(loss="wgan_gp"))
        image = random(2, 1, 8, 8).float()
        assert opponent(image, image.flip(0), None, torch.tensor([0.5, 0.5])).dtype == torch.float32
