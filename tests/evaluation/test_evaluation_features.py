"""The centre view, frozen features, PSNR and SSIM."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from dira_dist.evaluation.features import extract_features, views
from dira_dist.evaluation.restoration import psnr, ssim
from dira_dist.views.center_view import center_view


class Recorder(nn.Module):
    """An encoder that remembers what it saw: batch norm to see its mode, one map of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen.append(x)
        return [x, self.norm(x)]


def test_the_view_is_torchvisions_resize_and_centre_crop() -> None:
    images = torch.randint(0, 256, (2, 1, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = torchvision.transforms.functional.resize(images.float() / 255, [32], antialias=True)
    expected = torchvision.transforms.functional.center_crop(resized, [32, 32])
    assert torch.allclose(center_view(images, 32, 1), expected, atol=1e-6)


def test_the_view_of_a_square_of_the_right_size_is_the_image_itself() -> None:
    images = torch.randint(0, 65536, (1, 1, 16, 16)).to(torch.uint16)
    assert torch.equal(center_view(images, 16, 1), images.float() / 65535)
    assert center_view(images, 16, 3).shape == (1, 3, 16, 16)


def test_colour_becomes_luma_and_grey_is_repeated() -> None:
    colour = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = center_view(colour, 8, 1)
    assert torch.allclose(grey, torchvision.transforms.functional.rgb_to_grayscale(colour), atol=1e-3)
    assert torch.allclose(center_view(center_view(grey, 8, 3), 8, 1), grey, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 2, 8, 8), "C 1"),
        (torch.zeros(8, 8), "B, C, H, W"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_other_images_are_refused(images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        center_view(images, 8, 1)


def test_padding_is_no_part_of_the_view() -> None:
    small, large = torch.rand(1, 20, 30), torch.rand(1, 40, 24)
    padded = torch.zeros(2, 1, 40, 30)
    padded[0, :, :20, :30], padded[1, :, :40, :24] = small, large
    found = views((padded, torch.tensor([[20, 30], [40, 24]])), 16, 1, "cpu")
    assert torch.equal(found, torch.cat([center_view(image[None], 16, 1) for image in (small, large)]))


def test_features_are_taken_frozen_in_order_and_leave_no_trace() -> None:
    encoder = Recorder().train()
    batches = [torch.rand(3, 1, 12, 12), torch.rand(2, 1, 12, 12)]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features = extract_features(encoder, iter(batches), image_size=8, in_channels=1, device="cpu")
    assert features.shape == (5, 1)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    expected = torch.cat([center_view(batch, 8, 1).mean((-2, -1)) for batch in batches])
    assert torch.allclose(features, expected / np.sqrt(1 + 1e-5), atol=1e-6)
    assert encoder.training
    assert encoder.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert extract_features(encoder, [], image_size=8, in_channels=1, device="cpu").numel() == 0


def test_a_part_that_was_frozen_stays_frozen() -> None:
    encoder = Recorder().train()
    encoder.norm.eval()
    extract_features(encoder, [torch.rand(1, 1, 8, 8)], image_size=8, in_channels=1, device="cpu")
    assert encoder.training
    assert not encoder.norm.training


def test_psnr_is_its_formula_for_each_image_and_volume() -> None:
    for shape in ((3, 1, 16, 16), (2, 1, 4, 8, 8)):
        target = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        restored = (target + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
        error = ((restored - target).double().numpy() ** 2).reshape(len(target), -1).mean(axis=1)
        assert psnr(restored, target).numpy() == pytest.approx(10 * np.log10(1 / error), rel=1e-5)


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    target = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    values = [ssim((target + scale * noise).clamp(0, 1), target) for scale in (0.0, 0.05, 0.3)]
    assert values[0].tolist() == pytest.approx([1, 1])
    assert (values[1] < values[0]).all()
    assert (values[2] < values[1]).all()


def test_ssim_agrees_with_the_formula_written_out() -> None:
    target, restored = (torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    axis = np.arange(11) - 5
    gauss = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(gauss, gauss) / gauss.sum() ** 2
    x, y = (np.pad(image[0, 0].double().numpy(), 5, mode="reflect") for image in (target, restored))
    values = []
    for i in range(24):
        for j in range(24):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            c1, c2 = 0.01**2, 0.03**2
            values.append(
                (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    assert float(ssim(restored, target)) == pytest.approx(np.mean(values), abs=1e-4)


def test_a_view_of_a_volume_covers_each_axis_and_is_its_centre() -> None:
    volume = torch.rand(2, 1, 12, 20, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(center_view(volume, (12, 20, 16), 1), volume)
    assert torch.equal(center_view(volume, (12, 10, 16), 1), volume[:, :, :, 5:15])
    half = center_view(volume, (6, 10, 8), 1)
    assert half.shape == (2, 1, 6, 10, 8)
    ramp = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(1, 1, 12, 20, 16) / 12
    assert torch.allclose(center_view(ramp, (6, 10, 8), 1)[0, 0, 1:-1, 4, 4], (torch.arange(1, 5) * 2 + 0.5) / 12)


def test_a_view_may_have_unlike_sides_and_as_many_channels_as_the_images() -> None:
    images = torch.rand(2, 4, 40, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(center_view(images, (30, 20), 4), images[:, :, 5:35])
    with pytest.raises(ValueError, match="grey"):
        center_view(images, 16, 1)
