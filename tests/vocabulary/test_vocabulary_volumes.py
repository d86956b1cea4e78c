"""Volumes of several channels, smaller than the cube, or without a place in the patient."""

import io

import numpy as np

from dira_dist.data.ingest.volumes import Volume
from dira_dist.vocabulary.volumes import StoredVolume, cut, sample_of


def stored(*channels: np.ndarray, **metadata: object) -> StoredVolume:
    scale = {"by": "range", "low": -1000.0, "high": 1000.0}
    return StoredVolume(
        "a", tuple(Volume(each, (2.0, 1.0, None)) for each in channels), {"intensity": [scale, scale], **metadata}
    )


def noise(seed: int, sides: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 65536, sides).astype(np.uint16)


def test_channels_are_cut_alike_and_stay_together() -> None:
    first, second = noise(0, (6, 9, 8)), noise(1, (6, 9, 8))
    volume = stored(first, second, labels={"finding": "none"}, boxes=[{"x": 1}], channels=["t1", "t2"])
    cube = cut(volume, (1, 2, 3), (4, 4, 4), (4, 4, 4))
    sample = sample_of(volume, cube, "a-0", {"labels": {"word": "3"}})
    array = np.load(io.BytesIO(sample.image))
    assert (array == np.stack([each[1:5, 2:6, 3:7] for each in (first, second)])).all()
    assert sample.record["labels"] == {"word": "3"} and "boxes" not in sample.record
    assert sample.record["shape"] == [4, 4, 4] and sample.record["affine_ras_mm"] is None
    assert sample.record["channels"] == ["t1", "t2"] and len(sample.record["intensity"]) == 2


def test_beyond_a_volume_stands_the_lowest_value_of_each_channel() -> None:
    first, second = noise(0, (4, 4, 4)), noise(1, (4, 4, 4))
    for cube, own in zip(cut(stored(first, second), (-2, 0, -1), (8, 4, 6), (8, 4, 6)), (first, second), strict=True):
        assert (cube.voxels[2:6, :, 1:5] == own).all()
        rest = np.ones(cube.voxels.shape, dtype=bool)
        rest[2:6, :, 1:5] = False
        assert (cube.voxels[rest] == own.min()).all()


def test_a_resized_cube_says_how_large_its_voxels_are() -> None:
    (cube,) = cut(stored(noise(0, (6, 12, 12))), (0, 0, 0), (6, 12, 6), (6, 8, 8))
    assert cube.voxels.shape == (6, 8, 8) and cube.voxels.dtype == np.uint16
    assert cube.spacing_mm == (2.0, 1.5, None)


def test_values_in_their_own_unit() -> None:
    values = np.array([[[0, 65535], [32768, 13107]]], dtype=np.uint16)
    unit = stored(values).in_own_unit().volume.voxels
    assert np.allclose(unit, [[[-1000, 1000], [0, -600]]], atol=0.05)
