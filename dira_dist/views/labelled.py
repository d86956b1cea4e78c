"""Views for labels and masks: each image in its frame, and for training augmented there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dira_dist.views.augmentation import AugmentationConfig, augment
from dira_dist.views.center_view import center_view
from dira_dist.views.frame_view import fit_mask, fit_view
from dira_dist.views.patches import PatchConfig, draw_patches

Fit = Literal["crop", "fit", "slide"]
"""How an image is brought before a network: its centre; the whole of it, scaled; or as it is, window by window."""


@dataclass(frozen=True)
class LabelledViews:
    """What a supervised step works on.

    Attributes:
        images: (B, in_channels, *S) float32 in [0, 1]. Of grey images the channels share memory: do not write there.
        masks: (B, *S) int16, -1 where nobody has labelled; none where not asked for.
        sample_ids: (B,) int64.
        targets: (B, K) of a classifier.
    """

    images: Tensor
    masks: Tensor | None
    sample_ids: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@torch.no_grad()
def labelled_views(
    images: Tensor,
    sizes_px: Tensor,
    sample_ids: Tensor,
    epochs: Tensor,
    *,
    seed: int,
    image_size: int | Sequence[int],
    in_channels: int,
    fit: Fit,
    masks: Tensor | None = None,
    targets: Tensor | None = None,
    augmentation: AugmentationConfig | None = None,
    patches: PatchConfig | None = None,
) -> LabelledViews:
    """Each image in its frame, the same for validation and use; for training augmented there.

    Args:
        images: (B, C, *canvas) uint8 or uint16, padded at the ends of their axes.
        sizes_px: (B, n) int64, true sizes.
        sample_ids: (B,) int64.
        epochs: (B,) int64.
        seed: of the augmentation.
        image_size: pixels of the frame, a side or one for each axis.
        in_channels: of the views.
        fit: ``crop``, the centre of the image, as pretraining is evaluated; ``fit``, the whole of it in the frame;
            ``slide``, the image at its own size, of which images of one batch may have one only.
        masks: (B, *canvas) int16.
        targets: of a classifier; they pass through.
        augmentation: none: the frame as it is.
        patches: cut out of each image for training, before anything else; of ``slide`` alone.
    """
    if patches is not None:
        assert fit == "slide" and masks is not None
        images, masks = draw_patches(
            images, masks, sizes_px, sample_ids, epochs, seed=seed, image_size=image_size, foreground=patches.foreground
        )
        sizes_px = torch.tensor(images.shape[2:]).expand(len(images), -1)
    channels = 1 if images.shape[1] == 1 else in_channels  # grey is repeated at the end, and its noise with it
    found, found_masks = _frames(images, sizes_px, masks, image_size, channels, fit)
    if augmentation is not None:
        found, found_masks = augment(found, found_masks, sample_ids, epochs, seed=seed, config=augmentation)
    found = found.expand(-1, in_channels, *found.shape[2:])
    return LabelledViews(found, found_masks, sample_ids, targets)


def _frames(
    images: Tensor,
    sizes_px: Tensor,
    masks: Tensor | None,
    image_size: int | Sequence[int],
    channels: int,
    fit: Fit,
) -> tuple[Tensor, Tensor | None]:
    """Images of one size all at once, others each by itself: the same to the last bit."""
    sizes = sizes_px.tolist()
    if all(size == sizes[0] for size in sizes):
        return _framed(images, masks, sizes[0], image_size, channels, fit)
    alone = [slice(place, place + 1) for place in range(len(images))]
    framed = [
        _framed(images[one], None if masks is None else masks[one], size, image_size, channels, fit)
        for one, size in zip(alone, sizes, strict=True)
    ]
    own_masks = [mask for _, mask in framed if mask is not None]
    return torch.cat([image for image, _ in framed]), torch.cat(own_masks) if own_masks else None


def _framed(
    images: Tensor,
    masks: Tensor | None,
    size_px: Sequence[int],
    image_size: int | Sequence[int],
    channels: int,
    fit: Fit,
) -> tuple[Tensor, Tensor | None]:
    """Images of one size, (B, C, *canvas), and their masks."""
    own = tuple(map(slice, size_px))
    images = images[(slice(None), slice(None), *own)]
    if fit == "crop":
        assert masks is None, "masks are asked about whole"
        return center_view(images, image_size, channels), None
    whole = center_view(images, tuple(size_px), channels)  # channels and range; the size stays
    if fit == "slide":
        return whole, None if masks is None else masks[(slice(None), *own)]
    return fit_view(whole, image_size), None if masks is None else fit_mask(masks[(slice(None), *own)], image_size)
