"""Windows over volumes: one pass where it fits, averages by hand where windows overlap, and tiles that cover."""

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dira_dist.views.sliding_window import pad_to_window, slide, tiles

WINDOW = (8, 8, 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@torch.no_grad()
def test_a_volume_of_a_window_is_one_pass(blend: Literal["gaussian", "constant"]) -> None:
    volume, plain = torch.rand(2, 1, *WINDOW), network()
    found = slide(plain, volume, WINDOW, overlap=0.5, blend=blend)
    torch.testing.assert_close(found, plain(volume), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_smaller_volume_is_one_pass_in_the_middle_of_black() -> None:
    volume, plain = torch.rand(1, 1, 5, 8, 3), network()
    padded = pad_to_window(volume, WINDOW)
    assert padded.shape[2:] == WINDOW and torch.equal(padded[:, :, 1:6, :, :3], volume) and padded[0, 0, 0].sum() == 0
    found = slide(plain, volume, WINDOW, overlap=0.5, blend="gaussian")
    torch.testing.assert_close(found, plain(padded)[:, :, 1:6, :, :3], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_windows_that_overlap_are_averaged() -> None:
    """By loops over the windows, each of which begins half a window behind the one before."""
    volume, plain = torch.rand(1, 1, 12, 8, 6), network()
    total, count = torch.zeros(1, 3, 12, 8, 6), torch.zeros(12, 8, 6)
    for x, z in itertools.product((0, 4), (0, 2)):
        own = (slice(x, x + 8), slice(0, 8), slice(z, z + 4))
        total[(slice(None), slice(None), *own)] += plain(volume[(slice(None), slice(None), *own)])
        count[own] += 1
    found = slide(plain, volume, WINDOW, overlap=0.5, blend="constant", windows_at_once=3)
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-6)
    nearer = slide(plain, volume, WINDOW, overlap=0.5, blend="gaussian")
    assert not torch.allclose(nearer, found, atol=1e-4)


@torch.no_grad()
def test_how_many_windows_go_at_once_changes_nothing() -> None:
    volume, plain, seen = torch.rand(1, 1, 14, 9, 7), network(), list[int]()

    def counted(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        found: Tensor = plain(windows)
        return found

    found = [slide(counted, volume, WINDOW, overlap=0.25, blend="gaussian", windows_at_once=n) for n in (1, 5)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert min(seen) == 1 and max(seen) == 5


@pytest.mark.parametrize("sides", [(8, 8, 4), (9, 17, 4), (30, 8, 11)])
def test_tiles_cover_every_voxel_with_as_few_windows_as_can(sides: tuple[int, ...]) -> None:
    seen = np.zeros(sides, dtype=int)
    windows = list(tiles(sides, WINDOW))
    for window in windows:
        assert seen[window].shape == WINDOW
        seen[window] += 1
    assert seen.min() == 1
    assert len(windows) == np.prod([-(-length // side) for length, side in zip(sides, WINDOW, strict=True)])
