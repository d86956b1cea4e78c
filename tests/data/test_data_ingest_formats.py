"""Every format an archive may hold comes out with the pixels that it went in with."""

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dira_dist.data.ingest.pixels import fitted_size, mode_of, resize, to_mode
from dira_dist.data.ingest.readers import Picture, UnreadableError, read_pictures
from dira_dist.data.ingest.volumes import read_nifti, read_series

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


def _read(data: bytes, kind: Any = "raster", enough_px: int | None = None) -> list[Picture]:
    return list(read_pictures(data, kind, "window", enough_px))


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
    (picture,) = _read(_coded(Image.fromarray(values), "TIFF", **form), "tiff")
    assert picture.pixels.dtype == values.dtype and (picture.pixels == values).all()


def test_tiff_pages_bytes_and_numbers_of_other_kinds() -> None:
    assert [
        page.pixels[0, 0] for page in _read(_tiff(np.stack([GREY, 255 - GREY]), photometric="minisblack"), "tiff")
    ] == [
        GREY[0, 0],
        255 - GREY[0, 0],
    ]
    (white,) = _read(_tiff(GREY, photometric="miniswhite"), "tiff")
    assert (white.pixels == 255 - GREY).all()
    (big_endian,) = _read(_tiff(DEEP, byteorder=">"), "tiff")
    assert (big_endian.pixels == DEEP).all()
    (real,) = _read(_tiff(np.linspace(-1, 1, 108, dtype=np.float32).reshape(12, 9)), "tiff")
    assert (real.pixels.min(), real.pixels.max(), real.pixels.dtype) == (0, 65535, np.uint16)
    (planar,) = _read(_tiff(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), "tiff")
    assert (planar.pixels == COLOUR).all()
    (deep_colour,) = _read(_tiff(COLOUR.astype(np.uint16) * 256, photometric="rgb"), "tiff")
    assert (deep_colour.pixels == COLOUR).all()
    with pytest.raises(UnreadableError, match="no numbers"):
        _read(_tiff(np.full((4, 4), np.nan, np.float32)), "tiff")


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


# ----------------------------------------------------------------------------- DICOM


def dicom(values: np.ndarray, **tags: Any) -> FileDataset:
    """A DICOM file of frames of 16 stored bits, with the tags given."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = values.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3:
        dataset.NumberOfFrames = values.shape[0]
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.arange(-1000, 1000, 20, dtype=np.int16).reshape(10, 10)


def test_window_after_rescale() -> None:
    """Stored values 0, 20, ... are -1024, -1004, ... HU by the rescale; the window shows -160 to 240."""
    stored = (RAMP + 1000).astype(np.uint16)
    dataset = dicom(stored, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")
    (picture,) = _read(dicom_bytes(dataset), "dicom")
    hounsfield = stored.astype(float) - 1024
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 65535
    assert picture.pixels.dtype == np.uint16
    assert np.abs(picture.pixels - expected).max() <= 1
    assert (picture.pixels == 0).any() and (picture.pixels == 65535).any()


def test_full_range_instead_of_the_window_and_padding_left_out() -> None:
    values = RAMP.copy()
    values[0, 0] = -2000
    dataset = dicom(values, WindowCenter="0", WindowWidth="10", PixelPaddingValue=-2000)
    (full,) = read_pictures(dicom_bytes(dataset), "dicom", "full", None)
    (window,) = read_pictures(dicom_bytes(dataset), "dicom", "window", None)
    expected = (RAMP.astype(float) - RAMP[0, 1]) / (RAMP.max() - RAMP[0, 1]) * 65535
    assert np.abs(full.pixels.astype(float) - expected)[values != -2000].max() <= 1
    assert full.pixels[0, 0] == 0 and len(np.unique(window.pixels)) < len(np.unique(full.pixels))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_are_those_of_pydicom(function: str) -> None:
    from pydicom.pixels.processing import apply_windowing

    dataset = dicom(RAMP, WindowCenter=["50", "1"], WindowWidth=["700", "2"], VOILUTFunction=function)
    (picture,) = _read(dicom_bytes(dataset), "dicom")
    reference = apply_windowing(RAMP, dataset)
    expected = (reference + 32768) / 65535 * 65535
    assert np.abs(picture.pixels - expected).max() <= 2


def test_monochrome1_is_inverted_and_8_bits_stay_8() -> None:
    (plain,) = _read(dicom_bytes(dicom(GREY)), "dicom")
    (inverted,) = _read(dicom_bytes(dicom(GREY, PhotometricInterpretation="MONOCHROME1")), "dicom")
    assert plain.pixels.dtype == np.uint8 and (inverted.pixels == 255 - plain.pixels).all()


def test_each_frame_is_an_image() -> None:
    frames = np.stack([GREY, GREY[::-1], 255 - GREY])
    pictures = _read(dicom_bytes(dicom(frames)), "dicom")
    assert len(pictures) == 3
    assert (pictures[1].pixels == pictures[0].pixels[::-1]).all()


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"])
def test_compressed_syntaxes_equal_the_uncompressed_original(name: str) -> None:
    plain, coded = (Path(str(get_testdata_file(f"{file}.dcm"))) for file in ("MR_small", f"MR_small_{name}"))
    (expected,), (found,) = _read(plain.read_bytes(), "dicom"), _read(coded.read_bytes(), "dicom")
    assert (found.pixels == expected.pixels).all()


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [
        ("SC_rgb_dcmtk_+eb+cr.dcm", (100, 100, 3), 1),
        ("JPGExtended.dcm", (1024, 256), 1),
        ("JPEGLSNearLossless_16.dcm", (50, 10), 1),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3), 1),
        ("examples_palette.dcm", (350, 800, 3), 1),
        ("SC_rgb_rle_16bit_2frame.dcm", (100, 100, 3), 2),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3), 1),
        ("rtdose_rle.dcm", (10, 10), 15),
    ],
)
def test_pydicoms_own_files(name: str, shape: tuple[int, ...], frames: int) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not bring {name}")
    pictures = _read(Path(str(path)).read_bytes(), "dicom")
    assert len(pictures) == frames and pictures[0].pixels.shape == shape
    assert pictures[0].pixels.max() > pictures[0].pixels.min()


def test_a_dicom_file_without_pixels_says_so() -> None:
    with pytest.raises(UnreadableError, match="without pixels"):
        _read(Path(str(get_testdata_file("rtplan.dcm"))).read_bytes(), "dicom")


def test_only_codes_pass_from_the_header() -> None:
    tags = {"Modality": "DX", "ViewPosition": "PA", "PixelSpacing": [0.2, 0.1], "PatientName": "Doe^Jane"}
    (picture,) = _read(dicom_bytes(dicom(GREY, **tags)), "dicom")
    assert picture.tags == {"modality": "DX", "view_position": "PA", "pixel_spacing_mm": [0.2, 0.1]}
    (typed,) = _read(dicom_bytes(dicom(GREY, ViewPosition="JANE DOE")), "dicom")
    assert typed.tags == {}


# --------------------------------------------------------------------------- volumes


def _nifti(values: np.ndarray, affine: np.ndarray, suffix: str = ".nii") -> bytes:
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"Doe^Jane"
    data = image.to_bytes()
    if suffix == ".nii.gz":
        import gzip

        return gzip.compress(data)
    return data


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_axes_run_to_head_back_and_left(suffix: str) -> None:
    """One voxel is marked near the head, in front, on the right; in RAS indices (x, y, z) of 2 x 3 x 4 mm."""
    values = np.zeros((5, 6, 7), np.int16)
    values[4, 5, 6] = -9  # right, anterior, superior
    volume = read_nifti(_nifti(values, np.diag([2.0, 3, 4, 1]), suffix))
    assert volume.voxels.shape == (7, 6, 5) and volume.spacing_mm == (4, 3, 2)
    assert volume.voxels[6, 0, 0] == -9 and volume.voxels.dtype == np.int16


def test_nifti_flips_scales_and_dimensions() -> None:
    values = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
    flipped = read_nifti(_nifti(values[::-1], np.diag([-1.0, 1, 1, 1])))
    assert np.array_equal(flipped.voxels, read_nifti(_nifti(values, np.eye(4))).voxels)
    assert flipped.voxels.dtype == np.float32
    assert read_nifti(_nifti(values[..., None], np.eye(4))).voxels.shape == (5, 4, 3)
    with pytest.raises(UnreadableError, match="three dimensions"):
        read_nifti(_nifti(np.stack([values, values], -1), np.eye(4)))


def _series(volume: np.ndarray, **tags: Any) -> list[bytes]:
    return [
        dicom_bytes(
            dicom(
                plane,
                Modality="CT",
                ImagePositionPatient=[-10, -20, 2.5 * number],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[0.7, 0.6],
                **tags,
            )
        )
        for number, plane in enumerate(volume)
    ]


def test_a_series_is_sorted_by_place_and_keeps_hounsfield_units() -> None:
    values = RANDOM.integers(0, 3000, (6, 5, 4), dtype=np.uint16)
    slices = _series(values, RescaleSlope="1", RescaleIntercept="-1024")
    shuffled = [slices[number] for number in (3, 0, 5, 1, 4, 2)]
    volume = read_series(shuffled)
    assert np.array_equal(volume.voxels, values.astype(np.int16) - 1024) and volume.voxels.dtype == np.int16
    assert volume.spacing_mm == (2.5, 0.7, 0.6) and volume.tags == {"modality": "CT"}


def test_a_series_and_a_nifti_of_one_patient_agree() -> None:
    """The same voxels through both formats, the NIfTI in its usual order, come out alike."""
    values = RANDOM.integers(0, 3000, (6, 5, 4), dtype=np.int16)
    affine = np.array([[-0.6, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2.5, 0], [0, 0, 0, 1]])
    nifti = read_nifti(_nifti(values.transpose(2, 1, 0), affine))
    series = read_series(_series(values))
    assert np.array_equal(nifti.voxels, series.voxels) and nifti.spacing_mm == pytest.approx(series.spacing_mm)


def test_a_coronal_series_is_turned() -> None:
    values = RANDOM.integers(0, 3000, (6, 5, 4), dtype=np.int16)
    datasets = [pydicom.dcmread(io.BytesIO(data)) for data in _series(values)]
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [0, 3.0 * number, 0]
    volume = read_series([dicom_bytes(dataset) for dataset in datasets])
    assert np.array_equal(volume.voxels, values.transpose(1, 0, 2)[::-1]) and volume.spacing_mm == (0.7, 3.0, 0.6)


def test_slices_of_unlike_sizes_are_no_volume() -> None:
    with pytest.raises(UnreadableError, match="unlike sizes"):
        read_series([*_series(np.zeros((1, 4, 4), np.int16)), *_series(np.zeros((1, 5, 4), np.int16))])


def test_a_multi_frame_file_is_a_volume() -> None:
    values = RANDOM.integers(0, 3000, (6, 5, 4), dtype=np.uint16)
    volume = read_series([dicom_bytes(dicom(values, PixelSpacing=[1, 1], SliceThickness="2"))])
    assert np.array_equal(volume.voxels, values) and volume.spacing_mm == (2, 1, 1)
