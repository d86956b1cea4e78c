"""Colours to grey levels, and colours to other hues."""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey


def to_grey(images: Tensor) -> Tensor:
    """(N, C, ...) with C 1 or 3 to (N, 1, ...): the luma of RGB in float32, grey as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, k : k + 1].float() * weight for k, weight in enumerate(LUMA))
    return red.add_(green).add_(blue)


def turn_hue(colours: Tensor, turns: Tensor) -> Tensor:
    """Colours with their hue in HSV turned; saturation and value stay, so that none leaves [0, 1].

    Of a colour with value v (its largest part), chroma c (less its smallest) and hue h in sixths of the circle, part n
    (red 5, green 3, blue 1) is ``v - c * clamp(min(k, 4 - k), 0, 1)`` with ``k = (n + h) mod 6``: Smith, *Color Gamut
    Transform Pairs* (SIGGRAPH 1978), without its cases.

    Args:
        colours: (N, 3, P) float32 in [0, 1]: red, green, blue.
        turns: (N,) turns of the hue circle; above 0 from red towards green.
    """
    value, chroma, hue = _value_chroma_hue(colours)
    parts = torch.arange(5, 0, -2, device=colours.device)[:, None]
    k = (parts + (hue + 6 * turns[:, None])[:, None]).remainder_(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def _value_chroma_hue(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, P) each; the hue in sixths of the circle, 0 where there is no chroma."""
    red, green, blue = colours.unbind(1)
    value, chroma = colours.amax(1), colours.amax(1) - colours.amin(1)
    is_red, is_green = value == red, value == green
    ahead = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    return value, chroma, sector + ahead / torch.where(chroma == 0, 1.0, chroma)
