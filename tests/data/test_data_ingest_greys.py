"""DICOM values to grey and colour: what the standard says, what archives hold, and what a user asks for."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import CT, ENHANCED_CT, ENHANCED_MR, compressed, dicom, dicom_bytes, enhanced, item, lut, with_stream
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset

from dira_dist.data.ingest.dicom import DicomFile, looks_like_dicom, read_header
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.greys import mode_of_dicom, read_dicom
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.picture import Picture, RasterRules

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 10), dtype=np.uint8)
RAMP = np.arange(-1000, 1000, 20, dtype=np.int16).reshape(10, 10)
NOISE = (np.add.outer(np.arange(80), np.arange(90)) * 20 + RANDOM.integers(0, 90, (80, 90))).astype(np.uint16)
DEEP = np.linspace(0, 4095, 120).astype(np.uint16).reshape(12, 10)


def read(dataset: FileDataset | bytes, rule: str = "window") -> list[Picture]:
    data = dataset if isinstance(dataset, bytes) else dicom_bytes(dataset)
    return list(read_dicom(data, parse_intensity(rule)))


def share(dataset: FileDataset | bytes, rule: str = "window") -> np.ndarray:
    """The only frame as a share of black to white."""
    (picture,) = read(dataset, rule)
    return picture.pixels / np.iinfo(picture.pixels.dtype).max


def stretched(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    low, high = values.min() if low is None else low, values.max() if high is None else high
    return np.clip((values.astype(float) - low) / (high - low), 0, 1)


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


CURVE = np.rint(65535 * (np.arange(4096) / 4095) ** 2)
CASES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "window after rescale": (
        {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400"},
        windowed(DEEP * 2.0 - 1024, 40, 400),
    ),
    "slope alone": ({"RescaleSlope": 2, "WindowCenter": 4000, "WindowWidth": 3000}, windowed(DEEP * 2.0, 4000, 3000)),
    "rescale that is empty": (
        {"RescaleSlope": None, "RescaleIntercept": None, "WindowCenter": 2000, "WindowWidth": 900},
        windowed(DEEP, 2000, 900),
    ),
    "first of two windows": ({"WindowCenter": [2000, 9], "WindowWidth": [900, 2]}, windowed(DEEP, 2000, 900)),
    "window of no width": ({"WindowCenter": 0, "WindowWidth": 0}, stretched(DEEP)),
    "sigmoid": (
        {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        1 / (1 + np.exp(-4 * (DEEP - 2000.0) / 900)),
    ),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - stretched(DEEP)),
    "presentation LUT of shape INVERSE": ({"PresentationLUTShape": "INVERSE"}, 1 - stretched(DEEP)),
    "VOI LUT before a window": (
        {"VOILUTSequence": lut(CURVE), "WindowCenter": 9, "WindowWidth": 2},
        CURVE[DEEP] / 65535,
    ),
    "VOI LUT of 8-bit entries": ({"VOILUTSequence": lut(CURVE // 257, bits=8)}, (CURVE // 257)[DEEP] / 255),
    "VOI LUT that says 16 bits and has 12": ({"VOILUTSequence": lut(CURVE // 16, bits=16)}, (CURVE // 16)[DEEP] / 4095),
    "VOI LUT with a first value": (
        {"VOILUTSequence": lut(CURVE[:2000], first=1000)},
        CURVE[np.clip(DEEP.astype(int) - 1000, 0, 1999)] / 4095 / 4,
    ),
    "VOI LUT without a table": (
        {"VOILUTSequence": [item(LUTExplanation="x")], "WindowCenter": 2000, "WindowWidth": 900},
        windowed(DEEP, 2000, 900),
    ),
    "modality LUT of 12 bits": ({"ModalityLUTSequence": lut(CURVE // 16, bits=12)}, stretched((CURVE // 16)[DEEP])),
    "no bits stored": ({"BitsStored": None, "HighBit": None}, stretched(DEEP)),
    "no photometric interpretation": ({"PhotometricInterpretation": None}, stretched(DEEP)),
    "no frames": ({"NumberOfFrames": 0}, stretched(DEEP)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_become_grey(name: str) -> None:
    tags, expected = CASES[name]
    found = share(dicom(DEEP, **tags))
    if "first value" in name:  # its brightest entry tells its depth, not the descriptor
        expected = expected / expected.max() * found.max()
    assert np.abs(found - expected).max() < 2 / 65535 + (1e-4 if "LUT" in name else 0)


def test_what_is_no_number_is_no_window() -> None:
    data = dicom_bytes(dicom(DEEP, WindowCenter="40", WindowWidth="400"))
    assert np.abs(share(data.replace(b"DS\x02\x0040", b"DS\x02\x00ab")) - stretched(DEEP)).max() < 1e-4


def test_a_window_beyond_the_values_is_not_obeyed_and_told() -> None:
    (picture,) = read(dicom(DEEP + 30000, WindowCenter=40, WindowWidth=400))
    assert np.abs(picture.pixels / 65535 - stretched(DEEP)).max() < 1e-4
    assert "lies beyond its values" in picture.notes[0] and picture.tags["intensity"]["by"] == "full"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_sets_no_contrast_and_is_black(photometric: str) -> None:
    values = RAMP.copy()
    values[:, 0], values[:, 1] = -2000, -1500
    dataset = dicom(values, PhotometricInterpretation=photometric)
    dataset.add_new(0x00280120, "SS", -2000)
    dataset.add_new(0x00280121, "SS", -1500)
    found, real = share(dataset), stretched(RAMP, RAMP[0, 2], RAMP.max())[:, 2:]
    assert (found[:, :2] == 0).all()
    assert np.abs(found[:, 2:] - (1 - real if photometric == "MONOCHROME1" else real)).max() < 1e-4


def test_bits_beyond_those_stored_are_cleared_raw_and_compressed() -> None:
    overlay = NOISE.copy()
    overlay[3:6, 2:8] |= 0x1000
    for syntax in (None, uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGLSLossless):
        dataset = dicom(overlay)
        if syntax:
            compressed(dataset, syntax)
        dataset.BitsStored, dataset.HighBit = 12, 11
        assert np.abs(share(dataset) - stretched(NOISE)).max() < 1e-4, syntax


def test_values_in_the_upper_bits_are_moved_down() -> None:
    dataset = dicom(DEEP * 16, BitsStored=12, HighBit=15, WindowCenter=2000, WindowWidth=900)
    assert np.abs(share(dataset) - windowed(DEEP, 2000, 900)).max() < 1e-4


def test_float_pixels_are_read() -> None:
    dataset = dicom(DEEP)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData, dataset.BitsAllocated = (DEEP / 7).astype("<f4").tobytes(), 32
    assert np.abs(share(dataset) - stretched(DEEP)).max() < 1e-4


def test_ranges_and_percentiles_of_the_users_own() -> None:
    dataset = dicom(DEEP, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="0", WindowWidth="9")
    assert np.abs(share(dataset, "range:-1000,400") - stretched(DEEP - 1024.0, -1000, 400)).max() < 1e-4
    low, high = (float(value) for value in np.percentile(DEEP, (10, 90), method="inverted_cdf"))
    (picture,) = read(dataset, "percentiles:10,90")
    assert np.abs(picture.pixels / 65535 - stretched(DEEP, low, high)).max() < 1e-4
    assert picture.tags["intensity"] == {"by": "percentiles", "low": low - 1024, "high": high - 1024}
    for wrong in ("bone", "range:3,1", "range:1", "percentiles:1,101", "range:a,b"):
        with pytest.raises(ValueError, match=r"intensity|percentiles"):
            parse_intensity(wrong)


def test_frames_share_one_scale_and_keep_windows_of_their_own() -> None:
    still = np.stack([DEEP, DEEP // 2, np.full_like(DEEP, 100)])
    assert np.abs(np.stack([p.pixels for p in read(dicom(still))]) / 65535 - still / 4095).max() < 1e-4
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
    shared = item(PixelValueTransformationSequence=item(**rescale))
    each = [item(FrameVOILUTSequence=item(WindowCenter=c, WindowWidth=w)) for c, w in ((40, 400), (0, 2000), (9, 90))]
    found = [p.pixels / 65535 for p in read(enhanced(still, shared, each))]
    expected = [windowed(f - 1024.0, c, w) for f, (c, w) in zip(still, ((40, 400), (0, 2000), (9, 90)), strict=True)]
    assert np.abs(np.stack(found) - np.stack(expected)).max() < 1e-4


def test_slopes_of_each_frame() -> None:
    each = [item(PixelValueTransformationSequence=item(RescaleSlope=s, RescaleIntercept=0)) for s in (1, 3)]
    found = [p.pixels / 65535 for p in read(enhanced(np.stack([DEEP, DEEP]), Dataset(), each, ENHANCED_MR))]
    assert np.abs(found[0] - DEEP / 4095 / 3).max() < 1e-4 and np.abs(found[1] - DEEP / 4095).max() < 1e-4


# ---------------------------------------------------------------------------- colour


@pytest.mark.parametrize(("bits", "entries"), [(16, np.arange(256)), (16, np.arange(256) * 257), (8, np.arange(256))])
def test_palettes_of_8_and_16_bits(bits: int, entries: np.ndarray) -> None:
    dataset = dicom(GREY, PhotometricInterpretation="PALETTE COLOR")
    for name, table in (("Red", entries), ("Green", entries[::-1]), ("Blue", entries // 2)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    (picture,) = read(dataset)
    assert (picture.pixels == np.stack([GREY, 255 - GREY, GREY // 2], -1)).all()


def test_modes_are_told_from_headers_and_one_frame() -> None:
    assert mode_of_dicom(dicom_bytes(dicom(DEEP))) == "I;16" and mode_of_dicom(dicom_bytes(dicom(GREY))) == "L"
    assert mode_of_dicom(Path(str(get_testdata_file("examples_palette.dcm"))).read_bytes()) == "RGB"


# ---------------------------------------------------------------------------- damage


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.95])
def test_a_stream_cut_off_is_damage(syntax: str, cut: float) -> None:
    with pytest.raises(UnreadableError, match=r"cut off|cannot be decoded"):
        read(compressed(dicom(NOISE), syntax, cut))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.99])
def test_a_jpeg_cut_off_is_damage(cut: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray((NOISE // 16).astype(np.uint8)).save(buffer, "JPEG")
    stream = buffer.getvalue()
    whole = with_stream(dicom((NOISE // 16).astype(np.uint8)), stream, uid.JPEGBaseline8Bit)
    assert len(read(whole)) == 1
    with pytest.raises(UnreadableError, match="cut off"):
        read(with_stream(whole, stream[: int(len(stream) * cut)], uid.JPEGBaseline8Bit))


def test_frames_beyond_the_budget_and_streams_larger_than_their_header_are_not_decoded() -> None:
    with pytest.raises(UnreadableError, match="more than max_raster_mpx"):
        list(read_dicom(dicom_bytes(dicom(DEEP)), parse_intensity("full"), limits=RasterRules(max_px=100)))
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLSLossless):
        coded = compressed(dicom(NOISE), syntax)
        assert len(read(coded)) == 1
        coded.Rows, coded.Columns = 40, 40
        with pytest.raises(UnreadableError, match="compressed pixels are 80 x 90, where its header says 40 x 40"):
            read(coded)


def test_raw_pixels_cut_off_are_damage_and_too_many_are_not() -> None:
    data = dicom_bytes(dicom(DEEP))
    with pytest.raises(UnreadableError, match="cut off: 220 bytes of 240"):
        read(data[:-20])
    assert len(read(data + bytes(500))) == 1


def test_a_way_of_coding_that_is_not_read_is_named() -> None:
    with pytest.raises(UnreadableError, match="MPEG-4"):
        read(with_stream(dicom(GREY), b"\0\0\0\x18ftypmp42" + bytes(100), uid.MPEG4HP41))


# -------------------------------------------------------------------- forms of the file


def test_files_without_preamble_or_meta_and_gzipped() -> None:
    expected = share(dicom(NOISE))
    data = dicom_bytes(dicom(NOISE))
    bare = data[data.index(b"\x08\x00\x16\x00UI") :]
    coded = dicom_bytes(compressed(dicom(NOISE), uid.JPEG2000Lossless))
    bare_coded = coded[coded.index(b"\x08\x00\x16\x00UI") :]
    for form in (data[132:], bare, bare_coded, gzip.compress(data)):
        assert np.abs(share(form) - expected).max() < 1e-4
    assert looks_like_dicom(bare[:132]) and looks_like_dicom(data[132:264]) and looks_like_dicom(data[:132])
    for other in (b"\x89PNG\r\n\x1a\n" + bytes(124), b"II*\0" + bytes(128), bytes(132), b"ID,name\n" * 17):
        assert not looks_like_dicom(other)


class _Counted(io.BytesIO):
    read_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.read_bytes += len(found)
        return found


def test_a_header_is_read_without_its_pixels() -> None:
    stream = _Counted(dicom_bytes(dicom(np.zeros((2000, 2000), np.uint16), CT, Modality="CT")))
    assert read_header(stream).Modality == "CT" and stream.read_bytes < 200_000


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"])
def test_compressed_syntaxes_equal_the_uncompressed_original(name: str) -> None:
    plain, coded = (Path(str(get_testdata_file(f"{file}.dcm"))) for file in ("MR_small", f"MR_small_{name}"))
    (expected,), (found,) = read(plain.read_bytes()), read(coded.read_bytes())
    assert (found.pixels == expected.pixels).all()


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [
        ("SC_rgb_dcmtk_+eb+cr.dcm", (100, 100, 3), 1),
        ("JPGExtended.dcm", (1024, 256), 1),
        ("JPEGLSNearLossless_16.dcm", (50, 10), 1),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3), 1),
        ("examples_palette.dcm", (350, 800, 3), 1),
        ("image_dfl.dcm", (512, 512), 1),
        ("SC_rgb_rle_16bit_2frame.dcm", (100, 100, 3), 2),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3), 1),
        ("rtdose_rle.dcm", (10, 10), 15),
    ],
)
def test_pydicoms_own_files(name: str, shape: tuple[int, ...], frames: int) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not bring {name}")
    pictures = read(Path(str(path)).read_bytes())
    assert len(pictures) == frames and pictures[0].pixels.shape == shape
    assert max(picture.pixels.max() for picture in pictures) > pictures[0].pixels.min()


def test_a_dicom_file_without_pixels_says_so() -> None:
    with pytest.raises(UnreadableError, match="without pixels"):
        DicomFile(Path(str(get_testdata_file("rtplan.dcm"))).read_bytes())


# ------------------------------------------------------------------------- what is kept


def test_only_terms_of_the_standard_pass_from_the_header() -> None:
    kept = {"Modality": "DX", "ViewPosition": "PA", "PresentationIntentType": "FOR PROCESSING"}
    typed = {"Modality": "471142", "ViewPosition": "MEIER", "ImageType": ["DERIVED", "PRIMARY", "ANNA", "AXIAL"]}
    (known,), (unknown,) = read(dicom(GREY, **kept, PixelSpacing=[0.2, 0.1])), read(dicom(GREY, **typed))
    intensity = {"by": "full", "low": 0.0, "high": 255.0}
    assert known.tags | {"intensity": 0} == {
        "modality": "DX",
        "view_position": "PA",
        "presentation_intent": "FOR PROCESSING",
        "sop_class": "Computed Radiography Image Storage",
        "pixel_spacing_mm": [0.2, 0.1],
        "pixel_spacing_from": "PixelSpacing",
        "intensity": 0,
    }
    assert set(known.tags["intensity"]) == set(intensity)
    assert unknown.tags["image_type"] == ["DERIVED", "PRIMARY", "AXIAL"]
    assert not {"modality", "view_position"} & set(unknown.tags)


def test_a_spacing_that_is_not_known_is_null() -> None:
    (detector,) = read(dicom(GREY, ImagerPixelSpacing=[0.1, 0.1]))
    assert detector.tags["pixel_spacing_mm"] == [0.1, 0.1]
    assert detector.tags["pixel_spacing_from"] == "ImagerPixelSpacing"
    (unknown,) = read(dicom(GREY, PixelAspectRatio=[1, 2]))
    assert unknown.tags["pixel_spacing_mm"] is None and unknown.tags["pixel_aspect_ratio"] == [1, 2]
    data = dicom_bytes(dicom(GREY, PixelSpacing=[0.25, 0.25])).replace(b"0.25\\0.25", b"inf\\inf  ")
    assert read(data)[0].tags["pixel_spacing_mm"] is None


def test_an_enhanced_frame_knows_its_spacing() -> None:
    shared = item(PixelMeasuresSequence=item(PixelSpacing=[0.7, 0.6]))
    (picture,) = read(enhanced(DEEP[None], shared, [Dataset()], ENHANCED_CT))
    assert picture.tags["pixel_spacing_mm"] == [0.7, 0.6]
