"""The published 3D recipes, stated plainly: TransVW's view of a cube with NumPy and SciPy, and its eager step; Models
Genesis' view of a cube.

Haghighi et al., *TransVW* (IEEE TMI 2021): restoration of a warped and distorted cube, and its visual word.
Zhou et al., *Models Genesis* (Medical Image Analysis 2021): restoration of a cube that was shuffled and painted over.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor, nn

from dira_dist.models.unet3d_network import UNet3d

Cube = npt.NDArray[np.float64]
WORDS, WORD_WEIGHT = 44, 0.01
SIGMA, ALPHA = 8, 991
CURVE_SAMPLES, SHUFFLED_BLOCKS, GENESIS_BLOCKS = 100_000, 5, 10_000


class PublishedVolumeStep:
    """Float32 and contiguous: a 3D U-Net and a head for words, cross-entropy and squared error, Adam."""

    def __init__(self, width: int, device: str) -> None:
        self.network = UNet3d(width=width).to(device)
        deepest = 8 * width
        mix = (nn.Conv3d(deepest, 2 * deepest, 3, padding=1), nn.BatchNorm3d(2 * deepest), nn.ReLU(inplace=True))
        self.words = nn.Sequential(*mix, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2 * deepest, WORDS)).to(
            device
        )
        self.optimizer = torch.optim.Adam([*self.network.parameters(), *self.words.parameters()], 1e-3)

    def __call__(self, view: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses by name of one step; each cube of the batch is of another word."""
        maps = self.network.encoder(view)
        restored = self.network.segmentation_head(self.network.decoder(maps)).sigmoid()
        words = torch.arange(len(view), device=view.device) % WORDS
        losses = {"word": F.cross_entropy(self.words(maps[-1]), words), "restorative": F.mse_loss(restored, target)}
        self.optimizer.zero_grad()
        (WORD_WEIGHT * losses["word"] + losses["restorative"]).backward()
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}


def published_view(cube: Cube, drawn: np.random.Generator) -> tuple[Cube, Cube]:
    """A cube in [0, 1], and the same warped and, in one of four ways, distorted."""
    warped = warp(cube, drawn)
    distortions = (shuffle, bend, paint_inside, paint_outside)
    return cube, distortions[drawn.integers(4)](warped, drawn)


def warp(cube: Cube, drawn: np.random.Generator) -> Cube:
    """Moved in x and y by smoothed noise; z stays."""
    moves = [gaussian_filter(drawn.uniform(-1, 1, cube.shape), SIGMA, mode="constant") * ALPHA for _ in range(2)]
    x, y, z = np.meshgrid(*map(np.arange, cube.shape), indexing="ij")
    places = [np.reshape(each, -1) for each in (x + moves[0], y + moves[1], z)]
    moved: Cube = map_coordinates(cube, places, order=1, mode="reflect").reshape(cube.shape)
    return moved


def genesis_view(cube: Cube, drawn: np.random.Generator) -> tuple[Cube, Cube]:
    """A cube in [0, 1], flipped, and the same shuffled, bent and painted over, each by its chance."""
    for _ in range(3):
        if drawn.random() >= 0.4:
            break
        cube = np.flip(cube, int(drawn.integers(3)))
    view = cube.copy()
    if drawn.random() < 0.5:
        view = shuffle(view, drawn, GENESIS_BLOCKS)
    if drawn.random() < 0.9:
        view = bend(view, drawn)
    if drawn.random() < 0.9:
        view = paint_outside(view, drawn, 5) if drawn.random() < 0.8 else paint_inside(view, drawn, 5)
    return cube.copy(), view


def shuffle(cube: Cube, drawn: np.random.Generator, blocks: int = SHUFFLED_BLOCKS) -> Cube:
    """The voxels of small blocks in another order; content is read from the cube as it was."""
    out = cube.copy()
    for _ in range(blocks):
        sides = [int(drawn.integers(1, side // 10 + 1)) for side in cube.shape]
        block = _block(cube.shape, sides, drawn)
        voxels = cube[block].reshape(-1)
        out[block] = drawn.permutation(voxels).reshape(sides)
    return out


def bend(cube: Cube, drawn: np.random.Generator) -> Cube:
    """Intensities through a Bezier curve."""
    points = np.array([[0, 0], *drawn.uniform(size=(2, 2)), [1, 1]])
    t = np.linspace(0, 1, CURVE_SAMPLES)
    terms = [math.comb(3, k) * t ** (3 - k) * (1 - t) ** k for k in range(4)]
    x, y = (points.T @ np.stack(terms)).copy()
    x = np.sort(x)
    if drawn.random() < 0.5:
        y = np.sort(y)
    bent: Cube = np.interp(cube, x, y)
    return bent


def paint_inside(cube: Cube, drawn: np.random.Generator, most: int = 1) -> Cube:
    """Blocks of noise, at most so many."""
    out = cube.copy()
    for _ in range(_count(most, drawn)):
        sides = [int(drawn.integers(side // 6, side // 3)) for side in cube.shape]
        out[_block(cube.shape, sides, drawn, 3)] = drawn.uniform(size=sides)
    return out


def paint_outside(cube: Cube, drawn: np.random.Generator, most: int = 1) -> Cube:
    """Noise all around windows, at most so many."""
    out = drawn.uniform(size=cube.shape)
    for _ in range(_count(most, drawn)):
        sides = [side - int(drawn.integers(3 * side // 7, 4 * side // 7)) for side in cube.shape]
        block = _block(cube.shape, sides, drawn, 3)
        out[block] = cube[block]
    return out


def _count(most: int, drawn: np.random.Generator) -> int:
    """Blocks or windows: a further one with probability 0.95 each time."""
    count = 1
    while count < most and drawn.random() < 0.95:
        count += 1
    return count


def _block(shape: tuple[int, ...], sides: list[int], drawn: np.random.Generator, margin: int = 0) -> tuple[slice, ...]:
    firsts = [
        int(drawn.integers(margin, length - side - margin + 1)) for length, side in zip(shape, sides, strict=True)
    ]
    return tuple(slice(first, first + side) for first, side in zip(firsts, sides, strict=True))
