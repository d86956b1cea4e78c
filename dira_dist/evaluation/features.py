"""Features of images by a frozen encoder."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dira_dist.models.backbone import Size
from dira_dist.models.precision import average_over_positions
from dira_dist.views.center_view import center_view


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    image_size: Size,
    in_channels: int,
    device: torch.device | str,
) -> Tensor:
    """The encoder's features of every image, in the given order, on the CPU.

    The encoder is neither trained nor moved: it must be on ``device``. Its training or evaluation mode is restored.

    Args:
        encoder: returns a list of feature maps, the deepest last, as the encoders of segmentation_models_pytorch do.
        batches: images ``(B, C, *S)``, uint8, uint16 or floating point in [0, 1]; or pairs of images padded at the ends
            of their axes to the batch's largest and their sizes ``(B, n)`` in pixels.
        image_size: pixels of the centre view, a side or one for each axis.
        in_channels: of the encoder.
        device: where to compute.

    Returns:
        ``(N, C)`` float32.
    """
    with frozen(encoder):
        parts = [
            average_over_positions(encoder(views(batch, image_size, in_channels, device))[-1]).cpu()
            for batch in batches
        ]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def views(
    batch: Tensor | tuple[Tensor, Tensor], image_size: Size, in_channels: int, device: torch.device | str
) -> Tensor:
    """Centre views ``(B, in_channels, *image_size)`` of a batch as :func:`extract_features` takes them."""
    if isinstance(batch, Tensor):
        return center_view(batch.to(device), image_size, in_channels)
    images, sizes_px = batch
    sizes = [tuple(size) for size in sizes_px.tolist()]
    if all(size == tuple(images.shape[2:]) for size in sizes):
        return center_view(images.to(device), image_size, in_channels)
    own = [image[(None, slice(None), *map(slice, size))].to(device) for image, size in zip(images, sizes, strict=True)]
    return torch.cat([center_view(image, image_size, in_channels) for image in own])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, afterwards every module in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
