"""The network of a fine-tuning, the same on every worker; and that of all its folds together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dira_dist.models.ensemble import MEMBERS, Ensemble
from dira_dist.models.supervised import HEADS, Classifier, Segmenter, StartReport, load_start, parameter_depths
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.recipe import Classify, FinetuneOptimizer, FinetuneRecipe
from dira_dist.training.networks import Networks


class FinetuneNetworks(Networks):
    """A classifier or a segmenter, or several that answer as one.

    Args:
        network: images (B, C, *S) to logits, (B, K) or (B, K, *S).
        start: what became of the weights that it starts from; none where they were drawn.
    """

    def __init__(self, network: Classifier | Segmenter | Ensemble, start: StartReport | None = None) -> None:
        super().__init__()
        self.network, self.start = network, start

    def set_trainable(self, learns: str) -> None:
        """Lets the last layer learn, or all that ever gets a gradient."""
        assert not isinstance(self.network, Ensemble), "its members have learned"
        self.network.set_trainable(encoder=learns == "whole")

    def rate_factors(self, optimizer: FinetuneOptimizer) -> dict[nn.Parameter, float]:
        """Of each weight, by how far it lies before the last layer (Howard & Ruder, ACL 2018, section 3.2)."""
        assert not isinstance(self.network, Ensemble), "its members have learned"
        depths = parameter_depths(self.network)
        deepest = max(depths.values())
        factors = {}
        for name, weight in self.network.named_parameters():
            decayed = optimizer.layer_decay ** (deepest - depths[name])
            factors[weight] = decayed * (optimizer.head_lr_factor if name.startswith(HEADS) else 1.0)
        return factors


def build_networks(recipe: FinetuneRecipe, weights: Mapping[str, Tensor] | None = None) -> FinetuneNetworks:
    """The network of a settled recipe, on the CPU: drawn from the seed, then what is taken over of ``weights``.

    Of all folds together it is the ensemble of the folds' networks.

    Raises:
        RequestError: the weights do not fit.
    """
    if recipe.is_ensemble:
        return FinetuneNetworks(_ensemble(recipe))
    assert recipe.model is not None, "settled before anything is built"
    stay = recipe.optimizer.batch_norms == "stay"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        network: Classifier | Segmenter
        if isinstance(recipe.task, Classify):
            outputs = len(LabelCoding.of(recipe.task).classes)
            network = Classifier(recipe.model, outputs, dropout=recipe.task.dropout, norms_stay=stay)
        else:
            network = Segmenter(recipe.model, len(MaskCoding.of(recipe.task).outputs), norms_stay=stay)
    report = None if weights is None else load_start(network, weights, recipe.start.parts or "encoder")
    return FinetuneNetworks(network, report)


def _ensemble(recipe: FinetuneRecipe) -> Ensemble:
    folds = recipe.data.folds
    assert folds is not None
    networks = [build_networks(recipe.of_fold(fold)).network for fold in range(1, folds + 1)]
    members = [each for each in networks if not isinstance(each, Ensemble)]
    kind, outputs = _outputs(recipe)
    return Ensemble(members, outputs, exclusive=kind == "multiclass")


def _outputs(recipe: FinetuneRecipe) -> tuple[str, int]:
    """Their kind, and how many there are."""
    if isinstance(recipe.task, Classify):
        coding = LabelCoding.of(recipe.task)
        return coding.kind, len(coding.classes)
    return MaskCoding.of(recipe.task).kind, len(MaskCoding.of(recipe.task).outputs)


def joined(
    recipe: FinetuneRecipe, members: Sequence[Mapping[str, Tensor]], calibrations: Sequence[Mapping[str, list[float]]]
) -> dict[str, Tensor]:
    """The state of the :class:`FinetuneNetworks` of all folds together.

    Args:
        recipe: settled, of all folds.
        members: states of the :class:`FinetuneNetworks` of each fold.
        calibrations: ``slopes`` and ``intercepts`` of each; empty of segmenters, whose masks are not calibrated.
    """
    state = {
        f"network.{MEMBERS}{place}.{name.removeprefix('network.')}": weight
        for place, member in enumerate(members)
        for name, weight in member.items()
    }
    for name, unchanged in (("slopes", 1.0), ("intercepts", 0.0)):
        own = [unchanged] * _outputs(recipe)[1]
        state[f"network.{name}"] = torch.tensor([each.get(name, own) for each in calibrations])
    return state
