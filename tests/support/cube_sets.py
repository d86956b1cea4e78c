"""Sets of small cubes, each with a bright ball of its own size in noise, for whatever reads or trains on them."""

import io

import numpy as np
import numpy.typing as npt
from shard_sets import ShardWriter

from dira_dist.data.shards import Sample, ShardSetIndex

SIZES = ("large", "small")


def ball_cube(number: int, sides: tuple[int, int, int] = (16, 16, 16)) -> tuple[npt.NDArray[np.uint16], str]:
    """A cube (D, H, W), and whether its ball is large or small."""
    drawn = np.random.default_rng(number)
    label = SIZES[number % 2]
    places = np.stack(np.meshgrid(*(np.arange(side) + 0.5 for side in sides), indexing="ij"))
    centre = drawn.uniform(0.4, 0.6, 3) * sides
    radius = drawn.uniform(*((0.3, 0.4) if label == "large" else (0.1, 0.2))) * min(sides)
    inside = ((places - centre[:, None, None, None]) ** 2).sum(0) < radius**2
    values = 0.25 + 0.5 * inside + 0.05 * drawn.standard_normal(sides)
    return (values.clip(0, 1) * 65535).astype(np.uint16), label


def write_cubes(
    address: str, count: int, *, first: int = 0, sides: tuple[int, int, int] = (16, 16, 16), masks: bool = False
) -> ShardSetIndex:
    """A set of ``count`` cubes, every two of which are of one patient."""
    with ShardWriter(
        address, mode="volume", encoding="npy", samples_per_shard=8, labels=("size",), classes={"size": SIZES}
    ) as writer:
        for number in range(first, first + count):
            cube, label = ball_cube(number, sides)
            record = {"labels": {"size": label}, "split_group": f"p{number // 4}", "spacing_mm": [2.0, 1.0, 1.0]}
            mask = _npy((cube > 32767).astype(np.uint8)) if masks else None
            writer.add(Sample(f"c{number:04d}", _npy(cube), "npy", sides[1], sides[2], record, mask))
    return writer.index


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
