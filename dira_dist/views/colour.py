"""Colours to grey levels."""

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey


def to_grey(images: Tensor) -> Tensor:
    """(N, C, ...) with C 1 or 3 to (N, 1, ...): the luma of RGB in float32, grey as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, k : k + 1].float() * weight for k, weight in enumerate(LUMA))
    return red.add_(green).add_(blue)
