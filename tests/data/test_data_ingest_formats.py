"""Every format an archive may hold comes out with the pixels that it went in with."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dira_dist.data.ingest.pixels import fitted_size, mode_of, resize, to_mode
from dira_dist.data.ingest.readers import Picture, RasterRules, UnreadableError, read_pictures

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 9), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (12, 9), dtype=np.uint16)
COLOUR = RANDOM.integers(0, 256, (12, 9, 3), dtype=np.uint8)


def _coded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def _read(data: bytes, enough_px: int | None = None) -> list[Picture]:
    return list(read_pictures(data, RasterRules(enough_px=enough_px)))


# ---------------------------------------------------------------------- PNG and JPEG


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(DEEP), DEEP),
        (Image.fromarray(COLOUR), COLOUR),
        (Image.fromarray(np.dstack([COLOUR, GREY])), COLOUR),
        (Image.fromarray(np.dstack([GREY, GREY]), "LA"), GREY),
        (Image.fromarray(GREY > 99), (GREY > 99).astype(np.uint8) * 255),
    ],
    ids=["grey", "16 bit", "colour", "RGBA", "grey and alpha", "1 bit"],
)
def test_png_of_every_mode(image: Image.Image, expected: np.ndarray) -> None:
    (picture,) = _read(_coded(image, "PNG"))
    assert picture.pixels.dtype == expected.dtype and (picture.pixels == expected).all()
    assert picture.original_px == (12, 9)


def test_a_palette_is_resolved() -> None:
    image = Image.fromarray(GREY % 2, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    (picture,) = _read(_coded(image, "PNG"))
    assert picture.pixels[0, 0].tolist() == [[10, 20, 30], [200, 100, 50]][int(GREY[0, 0]) % 2]


def test_a_large_jpeg_is_decoded_small_but_remembers_its_size() -> None:
    smooth = np.linspace(0, 255, 800, dtype=np.uint8)[None].repeat(640, 0)
    data = _coded(Image.fromarray(smooth), "JPEG", quality=95)
    (whole,), (small,) = _read(data), _read(data, enough_px=64)
    assert whole.pixels.shape == (640, 800) and small.pixels.shape[0] < 640
    assert small.original_px == (640, 800) and min(small.pixels.shape) >= 128
    assert np.abs(resize(whole.pixels, 64, 80).astype(int) - resize(small.pixels, 64, 80)).mean() < 2


@pytest.mark.parametrize("cut", [20, 200])
def test_a_damaged_file_raises(cut: int) -> None:
    noise = RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)
    with pytest.raises(Exception, match=r"."):
        _read(_coded(Image.fromarray(noise), "PNG")[:cut])


# ------------------------------------------------------------------------------ TIFF


@pytest.mark.parametrize("values", [GREY, DEEP, COLOUR], ids=["grey", "16 bit", "colour"])
@pytest.mark.parametrize("compression", [None, "deflate", "tiff_lzw"])
def test_tiff_of_every_depth(values: np.ndarray, compression: str | None) -> None:
    form = {"compression": compression} if compression else {}
    (picture,) = _read(_coded(Image.fromarray(values), "TIFF", **form))
    assert picture.pixels.dtype == values.dtype and (picture.pixels == values).all()


def test_tiff_pages_bytes_and_numbers_of_other_kinds() -> None:
    assert [page.pixels[0, 0] for page in _read(_tiff(np.stack([GREY, 255 - GREY]), photometric="minisblack"))] == [
        GREY[0, 0],
        255 - GREY[0, 0],
    ]
    (white,) = _read(_tiff(GREY, photometric="miniswhite"))
    assert (white.pixels == 255 - GREY).all()
    (big_endian,) = _read(_tiff(DEEP, byteorder=">"))
    assert (big_endian.pixels == DEEP).all()
    (real,) = _read(_tiff(np.linspace(-1, 1, 108, dtype=np.float32).reshape(12, 9)))
    assert (real.pixels.min(), real.pixels.max(), real.pixels.dtype) == (0, 65535, np.uint16)
    (planar,) = _read(_tiff(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"))
    assert (planar.pixels == COLOUR).all()
    (deep_colour,) = _read(_tiff(COLOUR.astype(np.uint16) * 256, photometric="rgb"))
    assert (deep_colour.pixels == COLOUR).all()
    with pytest.raises(UnreadableError, match="no numbers"):
        _read(_tiff(np.full((4, 4), np.nan, np.float32)))


# ------------------------------------------------------------------- modes and sizes


def test_modes_keep_what_an_image_has() -> None:
    tinted = np.repeat(GREY[:, :, None], 3, axis=2)
    tinted[..., 0] = np.clip(tinted[..., 0].astype(int) + 4, 0, 255)
    assert [mode_of(pixels) for pixels in (GREY, DEEP, COLOUR, tinted)] == ["L", "I;16", "RGB", "L"]
    assert (to_mode(to_mode(GREY, "I;16"), "L") == GREY).all()
    assert (to_mode(to_mode(GREY, "RGB"), "L") == GREY).all()
    assert np.abs(to_mode(DEEP, "L").astype(int) - DEEP / 257).max() <= 0.51


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 1024), st.sampled_from(["shortest", "longest"]))
def test_sizes_keep_the_shape_and_never_grow(height: int, width: int, size: int, side: Any) -> None:
    new = fitted_size(height, width, size, side)
    chosen = (min if side == "shortest" else max)(height, width)
    assert (min if side == "shortest" else max)(new) == min(chosen, size)
    assert new[0] <= height and new[1] <= width
    scale = new[0] / height if height > width else new[1] / width
    assert abs(new[0] - height * scale) <= 1 and abs(new[1] - width * scale) <= 1


def test_resize_is_antialiased_and_keeps_16_bits() -> None:
    stripes = np.zeros((64, 64), np.uint16)
    stripes[:, ::2] = 40000
    small = resize(stripes, 16, 16)
    assert small.dtype == np.uint16 and np.abs(small[:, 2:-2].astype(int) - 20000).max() < 2000
    assert len(np.unique(resize(np.arange(4096, dtype=np.uint16).reshape(64, 64), 32, 32))) > 256
