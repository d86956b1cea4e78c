"""What the stream makes of the members of a sample."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shard_sets import ShardWriter

from dira_dist.data.decode import NO_LABEL, CorruptSampleError, Decoder, EncodedSample, Row, decode_image
from dira_dist.data.lanes import ReadOptions
from dira_dist.data.shards import ImageInfo, PixelRange, Sample
from dira_dist.data.stream import ShardStream

DEEP_LIST = b"[" * 200_000 + b"]" * 200_000
NESTED = [
    b'{"other": ' + DEEP_LIST + b"}",
    b'{"labels": {"x": ' + b"[" * 300 + b"]" * 300 + b"}}",
    b'{"labels": {"x": {"y": {"z": 1}}}}',
    b'{"split_group": ["p"]}',
]
GREY = np.add.outer(np.arange(40) * 3, np.arange(30) * 2).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) << 8) + 7
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)


def coded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, form, **options)
    return out.getvalue()


def decoded(members: dict[str, bytes], **options: Any) -> Row:
    some = PixelRange(min=30, median=30, max=40)
    image = ImageInfo(mode="L", encoding="png", height_px=some, width_px=some)
    return Decoder(image, **options).decode(EncodedSample(0, "k", members))


def test_png_is_exact_in_every_mode() -> None:
    assert (decode_image(coded(GREY), "L") == GREY[None]).all()
    assert (decode_image(coded(DEEP), "I;16") == DEEP[None]).all()
    assert (decode_image(coded(COLOUR), "RGB") == COLOUR.transpose(2, 0, 1)).all()
    assert decode_image(coded(DEEP), "I;16").dtype == np.uint16


def test_other_modes_are_converted() -> None:
    with_alpha = np.concatenate([COLOUR, np.full((40, 30, 1), 9, np.uint8)], axis=-1)
    assert (decode_image(coded(with_alpha), "RGB") == COLOUR.transpose(2, 0, 1)).all()
    assert (decode_image(coded(COLOUR), "L") == np.asarray(Image.fromarray(COLOUR).convert("L"))[None]).all()
    assert (decode_image(coded(GREY), "RGB") == GREY[None]).all()
    assert (decode_image(coded(DEEP), "L") == GREY[None]).all()
    assert (decode_image(coded(GREY), "I;16") == GREY[None].astype(np.uint16) * 257).all()
    palette = Image.fromarray(COLOUR).quantize(16)
    assert (decode_image(coded(palette), "RGB") == np.asarray(palette.convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("pixels", "mode"), [(GREY, "L"), (COLOUR, "RGB")])
def test_jpeg_is_close(pixels: np.ndarray, mode: str) -> None:
    found = decode_image(coded(pixels, "JPEG", quality=95, subsampling=0), mode)
    assert np.abs(found.astype(int) - np.atleast_3d(pixels).transpose(2, 0, 1)).mean() < 2


def test_any_flipped_byte_of_a_png_is_noticed() -> None:
    data = coded(GREY)
    for place in range(8, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        with pytest.raises(CorruptSampleError):
            decode_image(bytes(flipped), "L")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0, 3, 20, 0.5, 0.97])
def test_a_cut_image_is_noticed(form: str, kept: float) -> None:
    data = coded(GREY, form)
    with pytest.raises(CorruptSampleError):
        decode_image(data[: int(kept if kept >= 1 else kept * len(data))], "L")


def test_labels_come_from_the_record() -> None:
    record = json.dumps({"labels": {"finding": ["a", "b"], "age": 3}, "boxes": []}).encode()
    assert decoded({"png": coded(GREY), "json": record}).labels == {"finding": ["a", "b"], "age": 3}
    assert decoded({"png": coded(GREY)}).labels == {}


def test_the_patient_comes_from_the_metadata() -> None:
    assert decoded({"png": coded(GREY), "json": b'{"split_group": "p3"}'}).group == "p3"
    assert decoded({"png": coded(GREY)}).group == ""


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"labels": 3}', b"\xff", *NESTED])
def test_a_damaged_record_makes_a_corrupt_sample(record: bytes) -> None:
    with pytest.raises(CorruptSampleError):
        decoded({"png": coded(GREY), "json": record})


def test_masks_and_boxes_are_decoded_where_asked_for() -> None:
    boxes = [{"x": 1.5, "y": 2, "width": 3, "height": 4, "label": "mass"}]
    members = {"png": coded(GREY), "mask.png": coded(GREY // 64), "json": json.dumps({"boxes": boxes}).encode()}
    row = decoded(members, annotations=True)
    assert row.mask is not None and row.mask.dtype == np.int16 and (row.mask == GREY // 64).all()
    assert list(row.boxes) == boxes
    assert decoded(members).mask is None and decoded(members).boxes == ()
    without = decoded({"png": coded(GREY)}, annotations=True)
    assert without.mask is not None and without.mask.shape == GREY.shape and (without.mask == NO_LABEL).all()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (coded(GREY.T), "shape"),
        (coded(COLOUR), "shape"),
        (coded(GREY)[:-20], "checksum"),
        (coded(GREY, "JPEG"), "PNG"),
    ],
    ids=["turned", "coloured", "cut", "jpeg"],
)
def test_a_mask_that_is_no_label_for_each_pixel_makes_a_corrupt_sample(mask: bytes, reason: str) -> None:
    with pytest.raises(CorruptSampleError, match=f"its mask: .*{reason}"):
        decoded({"png": coded(GREY), "mask.png": mask}, annotations=True)
    assert decoded({"png": coded(GREY), "mask.png": mask}).mask is None


@pytest.mark.parametrize("boxes", ['{"x": 1}', "[3]", '[{"x": [1]}]'])
def test_boxes_of_another_form_make_a_corrupt_sample(boxes: str) -> None:
    with pytest.raises(CorruptSampleError, match="boxes"):
        decoded({"png": coded(GREY), "json": f'{{"boxes": {boxes}}}'.encode()}, annotations=True)


def test_a_side_too_long_for_the_budget_makes_a_corrupt_sample() -> None:
    """Known from the header alone: nothing of that size is decoded."""
    assert decoded({"png": coded(GREY)}, budget_px=40 * 40).pixels.shape == (1, 40, 30)
    with pytest.raises(CorruptSampleError, match=r"it is 40 x 30 px, and a side may have 39 px.*sample_budget_px"):
        decoded({"png": coded(GREY)}, budget_px=40 * 40 - 1)


def test_a_sample_without_an_image_is_corrupt() -> None:
    with pytest.raises(CorruptSampleError, match=r"no image among its members \['json', 'mask\.png'\]"):
        decoded({"json": b"{}", "mask.png": coded(GREY)})


@pytest.mark.parametrize(("pixels", "mode", "dtype"), [(DEEP, "I;16", torch.uint16), (COLOUR, "RGB", torch.uint8)])
@pytest.mark.parametrize("loader_workers", [0, 1])
def test_deep_and_coloured_sets_stream(
    tmp_path: Path, pixels: np.ndarray, mode: str, dtype: torch.dtype, loader_workers: int
) -> None:
    with ShardWriter(str(tmp_path), mode=mode, encoding="png") as writer:
        for number, height in enumerate((40, 30, 20, 40)):
            writer.add(Sample(f"k{number}", coded(pixels[:height]), "png", height, 30, {}))
    with ShardStream(str(tmp_path), ReadOptions(loader_workers=loader_workers), global_batch=4) as stream:
        batch = next(stream)
    assert batch.images.dtype == dtype and batch.images.shape == (4, 1 if mode == "I;16" else 3, 40, 30)
    whole = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())
    for image, (height, _), number in zip(batch.images, batch.sizes_px, batch.sample_ids, strict=True):
        assert height == (40, 30, 20, 40)[number]
        assert torch.equal(image[:, :height], whole[:, :height])


def test_real_radiographs(shared_data: Path) -> None:
    pictures = sorted((shared_data / "nih-chestxray14").rglob("*.png"))[:3]
    for path in pictures:
        found = decode_image(path.read_bytes(), "L")
        assert found.shape == (1, 1024, 1024)
        assert (found[0] == np.asarray(Image.open(path).convert("L"))).all()
