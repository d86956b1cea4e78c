"""Flat images as archives hold them: whatever their format, depth, inks and orientation, the right greys come out."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from shard_sets import read_shard

from dira_dist.data.ingest import ShardOptions, ShardReport, png, shard
from dira_dist.data.ingest.failures import UnreadableError, reason_of
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.readers import Picture, RasterRules, read_pictures
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store

RANDOM = np.random.default_rng(0)
RAMP = np.tile(np.arange(80), (60, 1))
RGB = np.stack([RAMP * 3, 255 - RAMP * 3, RAMP * 0 + 90], -1).astype(np.uint8)


def coded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def read(data: bytes, **rules: Any) -> list[Picture]:
    return list(read_pictures(data, RasterRules(**rules)))


def only(data: bytes, **rules: Any) -> np.ndarray:
    (picture,) = read(data, **rules)
    return picture.pixels


# ------------------------------------------------------------------------- PNG written


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (37, 53), (600, 2001)])
@pytest.mark.parametrize("kind", ["L", "I;16", "RGB"])
def test_what_is_written_is_read_the_same_by_every_tool(shape: tuple[int, int], kind: str) -> None:
    top, depth = (65536, np.uint16) if kind == "I;16" else (256, np.uint8)
    pixels = RANDOM.integers(0, top, (*shape, 3) if kind == "RGB" else shape).astype(depth)
    data = png.encode(pixels)
    assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()
    assert (only(data) == pixels).all()


def test_flat_images_are_coded_by_runs() -> None:
    assert len(png.encode(np.zeros((512, 512), np.uint8))) < 3000


def test_a_strip_that_is_no_row_ends_where_the_next_begins() -> None:
    """Differences go on over the borders of the strips in which an image is coded."""
    pixels = RANDOM.integers(0, 65536, (900, 1500)).astype(np.uint16)
    assert (np.asarray(Image.open(io.BytesIO(png.encode(pixels)))) == pixels).all()


# -------------------------------------------------------------- formats and their limits


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_the_first_bytes_say_what_a_file_is(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = only(coded(RAMP.astype(np.uint8), form, **options))
    grey = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    assert np.abs(grey.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"P5 2 2 255 aaaa", b""]
)
def test_no_other_decoder_is_started_than_that_of_the_format(data: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"no image that is read|it is empty"):
        read(data)


def test_images_beyond_the_budget_are_refused_before_they_are_decoded() -> None:
    rows = zlib.compress(bytes(30001 * 100))
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableError, match=r"30000 x 30000 px .*max_raster_mpx \(512\)"):
        read(bomb)
    for data in (coded(RAMP.astype(np.uint8), "JPEG"), tiff(RAMP.astype(np.uint8)), coded(RAMP.astype(np.uint8))):
        with pytest.raises(UnreadableError, match="60 x 80 px"):
            read(data, max_px=4799)
        assert only(data, max_px=4800).shape == (60, 80)


def test_pillows_own_limit_of_size_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert only(coded(RAMP.astype(np.uint8), "JPEG", quality=95)).shape == (60, 80)


def test_a_wrong_checksum_is_damage_though_the_pixels_unpack() -> None:
    data = bytearray(coded(RANDOM.integers(0, 255, (60, 80)).astype(np.uint8), compress_level=0))
    data[data.index(b"IDAT") + 60] ^= 0x80
    with pytest.raises(Exception, match=r".") as caught:
        read(bytes(data))
    assert "checksum" in reason_of(caught.value)


@pytest.mark.parametrize("name", ["unidentified", "bomb", "plain", "memory", "header"])
def test_reasons_are_words_without_addresses_or_class_names(name: str) -> None:
    errors = {
        "unidentified": Image.UnidentifiedImageError(f"cannot identify image file {io.BytesIO()!r}"),
        "bomb": Image.DecompressionBombError(),
        "plain": ValueError("Doe^Jane"),
        "memory": MemoryError(),
        "header": AttributeError("PatientName"),
    }
    told = reason_of(errors[name])
    assert told.startswith("it cannot be read: ") and len(told) > 30
    assert not [word for word in ("0x", "Error", "Doe", "PatientName") if word in told]


# ------------------------------------------------------------------- depth and colour


@pytest.mark.parametrize(("top", "depth"), [(200, 8), (1000, 10), (3000, 12), (4095, 12), (9000, 14), (40000, 16)])
@pytest.mark.parametrize("coding", [coded, tiff])
def test_a_depth_below_16_bits_fills_the_range(top: int, depth: int, coding: Any) -> None:
    values = np.rint(RAMP / 79 * top).astype(np.uint16)
    (picture,) = read(coding(values))
    expected = values / ((1 << depth) - 1) * 65535
    assert picture.pixels.dtype == np.uint16 and np.abs(picture.pixels - expected).max() <= 1
    assert picture.tags == ({} if depth == 16 else {"intensity": {"by": "depth", "low": 0, "high": (1 << depth) - 1}})


@pytest.mark.parametrize(
    ("rule", "low", "high"), [("range:1000,2000", 1000, 2000), ("full", 500, 3000), ("percentiles:25,75", 1125, 2375)]
)
def test_an_intensity_that_is_asked_for_holds_for_16_bits(rule: str, low: int, high: int) -> None:
    values = np.tile(np.linspace(500, 3000, 101).astype(np.uint16), (9, 1))
    found = only(coded(values), intensity=parse_intensity(rule))
    assert np.abs(found - np.clip((values.astype(float) - low) / (high - low), 0, 1) * 65535).max() <= 1


def test_sixteen_bits_of_grey_are_kept_beside_alpha_and_in_three_channels() -> None:
    deep = (RAMP * 829).astype(np.uint16)
    with_alpha = _png_of(np.stack([deep, np.full_like(deep, 65535)], -1), colour_type=4)
    in_colour = _png_of(np.stack([deep] * 3, -1), colour_type=2)
    assert (only(with_alpha) == deep).all() and (only(in_colour) == deep).all()
    (colour,) = read(_png_of(RGB.astype(np.uint16) * 257, colour_type=2))
    assert (colour.pixels == RGB).all() and colour.lost_depth


def _png_of(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits, without filters."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").tobytes()
    row_bytes = len(rows) // height
    raw = b"".join(b"\0" + rows[start : start + row_bytes] for start in range(0, len(rows), row_bytes))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_pixels_are_turned_as_viewers_show_them(orientation: int, form: str) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif}
    if form == "JPEG":
        options |= {"quality": 98, "subsampling": 0}
    data = coded(image, form, **options)
    (picture,) = read(data)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert picture.original_px == shown.shape[:2] == picture.pixels.shape[:2]
    assert np.abs(picture.pixels.astype(int) - shown).max() <= 2


def test_every_frame_of_an_animated_image_is_one() -> None:
    frames = [Image.fromarray(np.roll(RAMP.astype(np.uint8), 9 * number, 1)) for number in range(3)]
    for form in ("PNG", "GIF"):
        pictures = read(coded(frames[0], form, save_all=True, append_images=frames[1:]))
        assert len(pictures) == 3
        last = pictures[2].pixels
        assert ((last if last.ndim == 2 else last[:, :, 0]) == np.asarray(frames[2])).all()


# ------------------------------------------------------------------------------- TIFF


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_palettes_and_inks_are_resolved(compression: str | None) -> None:
    options = {"compression": compression} if compression else {}
    palette, inks = Image.fromarray(RGB).quantize(64), Image.fromarray(RGB).convert("CMYK")
    assert (only(coded(palette, "TIFF", **options)) == np.asarray(palette.convert("RGB"))).all()
    assert np.abs(only(coded(inks, "TIFF", **options)).astype(int) - np.asarray(inks.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_is_zero_is_inverted_in_any_depth(compression: str | None, kind: Any) -> None:
    top = np.iinfo(kind).max
    values = np.rint(RAMP / 79 * top).astype(kind)
    assert (only(tiff(top - values, photometric="miniswhite", compression=compression)) == values).all()


def test_smaller_levels_and_masks_of_a_page_are_no_pictures() -> None:
    big = np.tile(RGB, (4, 4, 1))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for step, kind in ((1, 0), (2, 1), (4, 1)):
            writer.write(big[::step, ::step], photometric="rgb", subfiletype=kind)
        writer.write(np.ones((60, 80), bool), subfiletype=4, photometric="minisblack")
    assert (only(buffer.getvalue()) == big).all()


def test_levels_that_their_writer_has_not_marked_are_told_by_their_pixels() -> None:
    big = np.tile(RGB, (4, 4, 1))
    small = np.asarray(Image.fromarray(big).resize((160, 120), Image.Resampling.BOX))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels in (big, small, 255 - small, big[:100]):
            writer.write(pixels, photometric="rgb")
    assert [picture.original_px for picture in read(buffer.getvalue())] == [(240, 320), (120, 160), (100, 320)]


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_tiff_without_its_end_is_damage(compression: str | None) -> None:
    noise = RANDOM.integers(0, 255, (200, 300)).astype(np.uint8)
    data = tiff(noise, compression=compression, rowsperstrip=20)
    with pytest.raises(Exception, match=r".") as caught:
        read(data[: len(data) * 2 // 3])
    assert "cut short" in reason_of(caught.value)


def test_a_stack_behind_one_page_is_read_whole() -> None:
    frames = np.stack([np.roll(RAMP * 800, 5 * number, 1) for number in range(6)]).astype("<u2")
    data = tiff(frames[0], description="ImageJ=1.53\nimages=6\nslices=6\nloop=false\n", metadata=None)
    data = data[: -frames[0].nbytes] + frames.tobytes()
    assert [int(picture.pixels[3, 0]) for picture in read(data)] == frames[:, 3, 0].tolist()


def test_what_is_no_number_is_zero() -> None:
    values = RAMP.astype(np.float32)
    values[0, :9], values[1, 0] = np.nan, np.inf
    found = only(tiff(values))
    assert (found[0, :9] == 0).all() and found[1, 0] == 65535 and found[2, 79] == 65535
    with pytest.raises(UnreadableError, match="no numbers"):
        read(tiff(np.full((4, 4), np.nan, np.float32)))


def test_packed_bits_are_unpacked_to_the_whole_range() -> None:
    values = np.rint(RAMP / 79 * 4095).astype(np.uint16)
    wide = values.ravel().astype(np.uint32)
    packed = np.empty(wide.size * 3 // 2, np.uint8)
    packed[0::3], packed[1::3] = wide[0::2] >> 4, ((wide[0::2] & 15) << 4) | (wide[1::2] >> 8)
    packed[2::3] = wide[1::2] & 255
    data = bytearray(tiff(packed.reshape(60, 120)))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets = {tag.code: tag.offset for tag in file.pages.first.tags}
    for code, value in ((256, 80), (258, 12)):
        data[offsets[code] + 8 : offsets[code] + 12] = value.to_bytes(4, "little")
    assert np.abs(only(bytes(data)) - values / 4095 * 65535).max() <= 1


# ----------------------------------------------------------------------- through a set


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "salt").write_text("0123456789abcdef")
    return tmp_path


def run(archive: Path, **more: Any) -> ShardReport:
    options = ShardOptions(**({"salt_file": str(archive / "salt"), "processes": 1, "image_size": None} | more))
    return shard(archive / "src", archive / "set", options)


def stored(archive: Path) -> list[np.ndarray]:
    store = open_store(str(archive / "set"))
    shards = read_index(str(archive / "set")).shards
    return [
        np.asarray(Image.open(io.BytesIO(members["png"])))
        for info in shards
        for _, members in read_shard(store, info.name)
    ]


def test_signed_numbers_share_one_scale_over_the_set(archive: Path) -> None:
    values = [(RAMP * step - 1000).astype(np.int16) for step in (10, 50)]
    for number, plane in enumerate(values):
        (archive / "src" / f"{number}.tif").write_bytes(tiff(plane))
    run(archive)
    found = sorted(stored(archive), key=lambda pixels: int(pixels.max()))
    for plane, pixels in zip(values, found, strict=True):
        assert np.abs(pixels - (plane.astype(float) + 1000) / 3950 * 65535).max() <= 1


def test_the_mode_is_told_with_what_it_costs(archive: Path) -> None:
    """Deep files are found wherever they stand: their headers are read, all of them."""
    for number in range(60):
        Image.fromarray((RAMP + number).astype(np.uint8)).save(archive / "src" / f"g{number}.png")
    for number in range(20):
        Image.fromarray(np.roll(RGB, number, 1)).save(archive / "src" / f"c{number}.png")
    Image.fromarray((RAMP * 800).astype(np.uint16)).save(archive / "src" / "deep.png")
    report = run(archive)
    assert report.mode == "I;16" and (report.converted, report.lost_colour) == (20, 20)
    told = "\n".join(report.lines())
    assert "mode I;16 (16-bit grey): about 20 of 81 files are in colour and become grey; --mode RGB" in told
    assert "20 of 81 files in colour became grey" in told
    report = run(archive, mode="L", overwrite=True)
    assert "1 of 81 files lost depth" in "\n".join(report.lines()) and report.lost_colour == 20


def test_the_budget_is_a_setting(archive: Path) -> None:
    for name, width in (("small", 30), ("large", 60)):
        Image.fromarray(np.full((40, width), 99, np.uint8)).save(archive / "src" / f"{name}.png")
    report = run(archive, max_raster_mpx=0.002)
    assert [found.file for found in report.skipped] == ["large.png"] and "40 x 60 px" in report.skipped[0].reason
