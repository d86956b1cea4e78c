"""Sets of arrays: cubes, volumes and sequences stream as images do."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dira_dist.config import RequestError
from dira_dist.data.batch import LocalBatch, TooManyBadSamplesError
from dira_dist.data.decode import NO_LABEL
from dira_dist.data.lanes import ReadOptions, check_set
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import ImageMode, Sample, ShardSetIndex, publish_index, publish_shard, read_index
from dira_dist.data.store import open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.validation import ValidationStream
from dira_dist.data.verify import verify


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version, allow_pickle=False)
    return out.getvalue()


def publish(
    address: Path,
    arrays: Sequence[np.ndarray],
    mode: ImageMode = "volume",
    masks: bool = False,
    **metadata: Any,
) -> ShardSetIndex:
    """A set of five arrays in each shard, sample ``i`` labelled ``i``, those of odd numbers with masks of ``i % 3``."""
    store, published = open_store(str(address)), []
    for first in range(0, len(arrays), 5):
        samples = []
        for number, array in enumerate(arrays[first : first + 5], first):
            mask = npy((array % 3).astype(np.uint8)) if masks and number % 2 else None
            samples.append(
                Sample(
                    f"k{number:03d}", npy(array), "npy", *array.shape[-2:], {"labels": {"n": number}} | metadata, mask
                )
            )
        shard = publish_shard(store, f"{first:06d}.tar", samples)
        assert shard is not None
        published.append(type(shard).model_validate_json(shard.model_dump_json(), strict=True))
    return publish_index(store, published, mode=mode, encoding="npy")


def spoil(address: Path, index: ShardSetIndex, data: bytes) -> ShardSetIndex:
    """Puts ``data`` in the place of the array of the first sample; the index that goes with that."""
    shard, out = address / "000000.tar", io.BytesIO()
    with tarfile.open(shard) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            body = data if member.name == "k000.npy" else content.read()
            member.size = len(body)
            target.addfile(member, io.BytesIO(body))
    shard.write_bytes(out.getvalue())
    first = index.shards[0].model_copy(update={"bytes": len(out.getvalue())})
    return index.model_copy(update={"shards": (first, *index.shards[1:])})


def cubes(count: int = 24, dtype: str = "uint16", channels: int = 0) -> list[np.ndarray]:
    """Of unlike depths and widths, each filled with its number."""
    shape = (channels,) if channels else ()
    return [np.full((*shape, 3 + n % 3, 6, 4 + n % 2), n, dtype=dtype) for n in range(count)]


def take(address: Path, batches: int, options: ReadOptions | None = None, **settings: Any) -> list[LocalBatch]:
    settings = {"global_batch": 8, "lanes": 4, "shuffle_window": 3} | settings
    with ShardStream(str(address), options, **settings) as stream:
        return [next(stream) for _ in range(batches)]


@pytest.mark.parametrize("channels", [0, 1, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_cubes_stream_with_what_belongs_to_them(tmp_path: Path, dtype: str, channels: int) -> None:
    arrays = cubes(dtype=dtype, channels=channels)
    index = publish(tmp_path, arrays)
    assert read_index(str(tmp_path)) == index and verify(str(tmp_path)) == []
    assert (index.image.channels, index.image.dtype, index.image.axes) == (max(1, channels), dtype, 3)
    batches = take(tmp_path, 3)
    assert sorted(int(i) for batch in batches for i in batch.sample_ids) == list(range(24))
    for batch in batches:
        assert batch.images.dtype == getattr(torch, dtype) and batch.images.ndim == 5
        for image, sides, number in zip(batch.images, batch.sizes_px.tolist(), batch.sample_ids.tolist(), strict=True):
            width, height, depth = sides
            assert (depth, height, width) == arrays[number].shape[-3:]
            inside = image[:, :width, :height, :depth]
            stored = torch.from_numpy(arrays[number]).reshape(-1, depth, height, width)
            assert torch.equal(inside, stored.transpose(1, 3))
            assert image.double().sum() == inside.double().sum(), "padding is zero"


@pytest.mark.parametrize("channels", [0, 2])
def test_volumes_lie_towards_head_back_left_and_come_as_x_y_z(tmp_path: Path, channels: int) -> None:
    shape = (channels,) if channels else ()
    arrays = [np.arange(max(1, channels) * 60 + n, dtype=np.uint16)[n:].reshape(*shape, 3, 4, 5) for n in range(5)]
    spacing = [2.5, 0.7, 0.6]
    index = publish(tmp_path, arrays, masks=not channels, spacing_mm=spacing)
    (batch,) = take(tmp_path, 1, ReadOptions(annotations=True), global_batch=5, lanes=5)
    assert batch.masks is not None and batch.sizes_px.tolist() == [[5, 4, 3]] * 5
    for image, mask, number in zip(batch.images.numpy(), batch.masks.numpy(), batch.sample_ids.tolist(), strict=True):
        for d, h, w in np.ndindex(3, 4, 5):
            assert np.array_equal(image[:, w, h, d], np.atleast_1d(arrays[number][..., d, h, w]))
            labelled = number % 2 and not channels
            assert mask[w, h, d] == (arrays[number][d, h, w] % 3 if labelled else NO_LABEL)
    assert [side.median for side in index.image.sides_px] == [5, 4, 3]
    assert read_samples(str(tmp_path), index).spacing_mm == ((0.6, 0.7, 2.5),) * 5


def test_order_resume_workers_and_processes_are_those_of_images(tmp_path: Path) -> None:
    publish(tmp_path, cubes())
    expected = take(tmp_path, 6)
    resumed = take(tmp_path, 2, start_sample=32)
    assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, expected[4:], strict=True))
    for batch, processes in zip(expected, take(tmp_path, 6, ReadOptions(loader_workers=2)), strict=True):
        assert batch.keys == processes.keys and torch.equal(batch.images, processes.images)
    halves = [take(tmp_path, 6, world_size=2, rank=rank) for rank in range(2)]
    for batch, *parts in zip(expected, *halves, strict=True):
        assert batch.keys == parts[0].keys + parts[1].keys


def test_validation_passes_over_volumes_once(tmp_path: Path) -> None:
    index = spoil(tmp_path, publish(tmp_path, cubes(10)), b"no array")
    with ValidationStream(str(tmp_path), batch_size=4, index=index) as stream:
        batches = list(stream)
    assert [batch.images.ndim for batch in batches] == [5, 5, 5]
    assert [int(i) for batch in batches for i in batch.sample_ids[batch.valid]] == list(range(1, 10))
    assert sum(batch.bad_samples for batch in batches) == 1


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_sequences_of_a_slice_are_one_sample(tmp_path: Path, channels: int) -> None:
    arrays = [np.full((channels, 6, 5) if channels else (6, 5), n, np.uint16) for n in range(8)]
    index = publish(tmp_path, arrays, mode="planes")
    assert (index.image.axes, index.image.channels, index.image.depth_px) == (2, max(1, channels), None)
    (batch,) = take(tmp_path, 1)
    assert batch.images.shape == (8, max(1, channels), 6, 5)
    assert (batch.images.to(torch.int64).amax((1, 2, 3)) == batch.sample_ids).all()


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_masks_come_aligned_where_asked_for(tmp_path: Path, loader_workers: int) -> None:
    arrays = cubes()
    publish(tmp_path, arrays, masks=True, boxes=[{"x": 1, "y": 2, "z": 0}])
    (batch,) = take(tmp_path, 1, ReadOptions(annotations=True, loader_workers=loader_workers))
    assert batch.masks is not None and batch.masks.shape == batch.images.shape[:1] + batch.images.shape[2:]
    for mask, sides, number in zip(batch.masks, batch.sizes_px.tolist(), batch.sample_ids.tolist(), strict=True):
        inside = mask[tuple(map(slice, sides))]
        assert (inside == (number % 3 if number % 2 else NO_LABEL)).all()
        assert (mask == NO_LABEL).sum() >= mask.numel() - inside.numel()
    assert batch.boxes == (({"x": 1, "y": 2, "z": 0},),) * 8
    (plain,) = take(tmp_path, 1)
    assert plain.masks is None and plain.boxes == ((),) * 8
    assert batch.to("meta").masks.device.type == "meta"


def test_the_index_tells_depth_and_spacing(tmp_path: Path) -> None:
    image = publish(tmp_path, cubes(6), spacing_mm=[5.0, 0.7, 0.7]).image
    assert image.depth_px is not None and (image.depth_px.min, image.depth_px.max) == (3, 5)
    assert image.spacing_mm is not None and [axis.median for axis in image.spacing_mm] == [5.0, 0.7, 0.7]


def test_the_widest_type_of_a_set_holds_all_samples(tmp_path: Path) -> None:
    index = publish(tmp_path, [cubes(1, "uint8")[0], *(array - 5 for array in cubes(9, "int16"))])
    assert index.image.dtype == "int16"
    images = [batch.images for batch in take(tmp_path, 2, global_batch=5, lanes=5)]
    assert int(min(image.min() for image in images)) == -5


@pytest.mark.parametrize(
    "unlike", [cubes(1, channels=2)[0], np.zeros((4, 4), np.uint16), np.zeros((2, 2, 2, 2, 2), np.uint16)]
)
def test_a_set_of_unlike_arrays_is_refused(tmp_path: Path, unlike: np.ndarray) -> None:
    with pytest.raises(RequestError, match="one number of channels"):
        publish(tmp_path, [*cubes(2), unlike])


def test_a_set_of_other_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"values of uint8, .*{np.dtype(np.longdouble).name}"):
        publish(tmp_path, cubes(2, "longdouble"))


def test_volumes_of_an_older_index_are_refused(tmp_path: Path) -> None:
    index = publish(tmp_path, cubes(6))
    image = index.image.model_copy(update={"array_type": None, "depth_px": None, "array_channels": None})
    with pytest.raises(RequestError, match="shard them again"):
        check_set(str(tmp_path), index.model_copy(update={"image": image}))


WHOLE = npy(np.zeros((4, 4, 4), np.uint16))


def claiming(shape: str) -> bytes:
    """The same file with another shape in its header."""
    return WHOLE.replace(
        f"(4, 4, 4), }}{' ' * (len(shape) - 9)}".encode(), f"{shape}, }}{' ' * (9 - len(shape))}".encode()
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no NPY file"),
        (WHOLE[:20], "no NPY file"),
        (WHOLE[:-2], "128 are meant"),
        (WHOLE + b"\0\0", "128 are meant"),
        (claiming("(9000, 9000, 9000)"), "a side may have 512 px"),
        (claiming("(400, 400, 400)"), "are meant"),
        (claiming("(64,)"), "spatial axes"),
        (claiming("(4, -4, -4)"), "spatial axes|are meant"),
        (WHOLE.replace(b"'<u2'", b"'|O' "), "no numbers"),
        (npy(np.zeros((4, 4, 4), np.float32)), "holds float32, where the set holds uint16"),
        (npy(np.zeros((2, 4, 4, 4), np.uint16)), "1 channel"),
        (npy(np.array(3, np.uint16)), "spatial axes"),
    ],
)
def test_arrays_that_are_not_what_the_index_says_are_bad_samples(tmp_path: Path, data: bytes, reason: str) -> None:
    index = spoil(tmp_path, publish(tmp_path, cubes(5)), data)
    with (
        pytest.raises(TooManyBadSamplesError, match=rf"k000 \(.*({reason})"),
        ValidationStream(str(tmp_path), ReadOptions(bad_sample_budget=0), batch_size=5, index=index) as stream,
    ):
        next(stream)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 4), ">u2"), np.zeros((4, 4, 4), np.uint16, order="F")])
def test_arrays_of_other_machines_and_orders_are_read(tmp_path: Path, array: np.ndarray) -> None:
    array[1, 2, 3] = 513
    index = spoil(tmp_path, publish(tmp_path, cubes(5)), npy(array))
    with ValidationStream(str(tmp_path), batch_size=5, index=index) as stream:
        image = next(stream).images[0, 0, :4, :4, :4].to(torch.int64)
    assert image[3, 2, 1] == 513 and image.sum() == 513
