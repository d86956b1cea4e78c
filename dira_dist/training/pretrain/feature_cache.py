"""Gradients of a loss that needs the features of the whole batch at once, with activations of a part of it in memory.

Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup* (RepL4NLP 2021), section 3: the
features of all parts are computed without a graph, then the loss and its gradient of each feature; then each part
passes the encoder once more, with a graph, and takes its features' gradients up. What comes out is the gradient of the
whole batch, whatever the loss does with the features; it costs one more forward pass of the encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from dira_dist.models.checkpointing import frozen_statistics


class RandomState:
    """Where the random numbers stand, so that dropout of a second pass is that of the first."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.get_rng_state()
        self._devices = get_device_states(tensor)

    def restore(self) -> None:
        """Goes on from there."""
        torch.set_rng_state(self._host)
        set_device_states(*self._devices)


@dataclass(frozen=True)
class _Encoded:
    """Features (B, F) of a view (B, C, *S), a leaf of the loss's graph, and where each part's random numbers began."""

    view: Tensor
    features: Tensor
    states: Sequence[RandomState]


class FeatureCache:
    """Encodes views part by part without a graph, and once more with one.

    Args:
        encoder: what learns; its running statistics count the second pass alone.
        encode: a view (B, C, *S) to features (B, F), by that encoder.
        parts: rows that pass at once.
    """

    def __init__(self, encoder: nn.Module, encode: Callable[[Tensor], Tensor], parts: Sequence[slice]) -> None:
        self._encoder, self._encode, self._parts = encoder, encode, parts
        self._encoded: list[_Encoded] = []

    def encode(self, view: Tensor) -> Tensor:
        """Features of a view of the whole batch (B, F), which collect the gradient of what is computed from them."""
        found, states = [], []
        with torch.no_grad(), frozen_statistics(self._encoder):
            for rows in self._parts:
                states.append(RandomState(view))
                found.append(self._encode(view[rows]))
        features = torch.cat(found).requires_grad_()
        self._encoded.append(_Encoded(view, features, states))
        return features

    def rewind(self, part: int, view: int = 0) -> None:
        """Random numbers go on from where they stood before a part of a view, by the order of encoding, was encoded."""
        self._encoded[view].states[part].restore()

    def pull(self, part: int, first: Tensor) -> Tensor:
        """A scalar (), worth nothing, whose gradient by the encoder's weights is the loss's through one part.

        Args:
            part: which.
            first: its features of the view that was encoded first, with a graph, made after :meth:`rewind`.
        """
        terms = [self._pull(self._encoded[0], part, first)]
        for number, encoded in enumerate(self._encoded[1:], start=1):
            self.rewind(part, number)
            terms.append(self._pull(encoded, part, self._encode(encoded.view[self._parts[part]])))
        return torch.stack(terms).sum()

    def _pull(self, encoded: _Encoded, part: int, features: Tensor) -> Tensor:
        gradient = encoded.features.grad
        return (features * (0.0 if gradient is None else gradient[self._parts[part]])).sum()
