"""Visual words: which pattern of the anatomy the first view shows, as a label of the sample says.

Haghighi et al., *Transferable Visual Words* (IEEE TMI 2021), section III: words are found in the archive itself,
without a label by hand. ``dira-dist words`` finds them and makes a set of samples that carry them; here such a set is
asked for.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.precision import at_least_float32, average_over_positions, without_autocast
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import Method, MethodInputs, MethodSection, Need

_CONVOLUTIONS = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


class VisualWordsConfig(MethodSection):
    """Classification of the samples' words, with TransVW's head."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps", "labels"})
    min_local_batch: ClassVar[int] = 2

    own_optimizer: ClassVar[Mapping[str, object]] = {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "schedule": "step",
        "halve_every_epochs": 40.0,
    }
    published_batches: ClassVar[tuple[int, int]] = (12, 64)

    name: Literal["visual_words"] = "visual_words"
    label: str = Field("word", description="name of the samples' label; its values are numbers from 0 on")
    words: int = Field(44, ge=2, description="how many words there are")

    @property
    def example_labels(self) -> Mapping[str, Any]:
        return {self.label: 0}

    def check_labels(self, labels: Mapping[str, tuple[str, ...] | None]) -> None:
        if self.label not in labels:
            known = ", ".join(labels) or "none"
            raise RequestError(
                f"method.label: {self.label!r} is none of its labels; known: {known}; dira-dist words makes a set of "
                "cubes that carry their word"
            )
        found = labels[self.label]
        wrong = [value for value in found or () if not _is_word(value, self.words)]
        if wrong:
            raise RequestError(
                f"method.words: the label {self.label!r} has the value {wrong[0]!r}, and words are numbers from 0 to "
                f"{self.words - 1}; set method.words to more than the highest, or give another method.label"
            )

    def build(self, encoder: nn.Module, features: int) -> "VisualWords":
        axes = next(weight.ndim - 2 for weight in encoder.parameters() if weight.ndim > 3)
        return VisualWords(self, features, axes)


def _is_word(value: Any, words: int) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return number.is_integer() and 0 <= number < words


def word_loss(logits: Tensor, words: Tensor) -> Tensor:
    r"""Mean cross-entropy.

    .. math:: L_{cls} = - \frac{1}{B} \sum_b \sum_c Y_{bc} \log P_{bc}

    Haghighi et al. (2021), equation 1.

    Args:
        logits: (B, C).
        words: (B,) int64.

    Returns:
        ().
    """
    return F.cross_entropy(logits, words)


class VisualWords(Method):
    """TransVW's head: a convolution to twice the channels, the mean over positions, a line for each word."""

    def __init__(self, config: VisualWordsConfig, features: int, axes: int) -> None:
        super().__init__()
        self.config = config
        convolution, norm = _CONVOLUTIONS[axes]
        self.mix = nn.Sequential(
            convolution(features, 2 * features, 3, padding=1), norm(2 * features), nn.ReLU(inplace=True)
        )
        self.classify = nn.Linear(2 * features, config.words)

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.maps is not None and inputs.labels is not None
        averaged = average_over_positions(self.mix(inputs.maps[-1]))
        logits = self.classify(averaged)
        words = torch.tensor([self._word(known) for known in inputs.labels], device=logits.device)
        with without_autocast(logits):
            return batch.local_weight * word_loss(at_least_float32(logits), words)

    def _word(self, known: Mapping[str, Any]) -> int:
        value = known.get(self.config.label)
        if not _is_word(value, self.config.words):
            raise RequestError(
                f"method.label: a sample has the {self.config.label!r} {value!r}; words are numbers from 0 to "
                f"{self.config.words - 1}, and each sample has one: leave those without out of the set"
            )
        assert value is not None
        return int(float(value))
