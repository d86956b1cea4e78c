"""The network of a fine-tuning, the same on every worker."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dira_dist.models.supervised import HEADS, Classifier, Segmenter, StartReport, load_start, parameter_depths
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.recipe import Classify, FinetuneOptimizer, FinetuneRecipe
from dira_dist.training.networks import Networks


class FinetuneNetworks(Networks):
    """A classifier or a segmenter.

    Args:
        network: images (B, C, *S) to logits, (B, K) or (B, K, *S).
        start: what became of the weights that it starts from; none where they were drawn.
    """

    def __init__(self, network: Classifier | Segmenter, start: StartReport | None = None) -> None:
        super().__init__()
        self.network, self.start = network, start

    def set_trainable(self, learns: str) -> None:
        """Lets the last layer learn, or all that ever gets a gradient."""
        self.network.set_trainable(encoder=learns == "whole")

    def rate_factors(self, optimizer: FinetuneOptimizer) -> dict[nn.Parameter, float]:
        """Of each weight, by how far it lies before the last layer (Howard & Ruder, ACL 2018, section 3.2)."""
        depths = parameter_depths(self.network)
        deepest = max(depths.values())
        factors = {}
        for name, weight in self.network.named_parameters():
            decayed = optimizer.layer_decay ** (deepest - depths[name])
            factors[weight] = decayed * (optimizer.head_lr_factor if name.startswith(HEADS) else 1.0)
        return factors


def build_networks(recipe: FinetuneRecipe, weights: Mapping[str, Tensor] | None = None) -> FinetuneNetworks:
    """The network of a settled recipe, on the CPU: drawn from the seed, then what is taken over of ``weights``.

    Raises:
        RequestError: the weights do not fit.
    """
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
