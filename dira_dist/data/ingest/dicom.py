"""DICOM files, read as they come: with and without preamble, with tags missing, damaged, compressed in every usual way.

:func:`read_header` parses all that stands before the pixels and hardly a byte more; :class:`DicomFile` decodes the
frames one by one. What a missing or unreadable element leaves open gets the value that the pixels themselves imply.
"""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.terms import text_of

if TYPE_CHECKING:
    from pydicom import Dataset

PIXEL_ELEMENTS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_CHUNK_BYTES = 1 << 16
GZIP_MARK = b"\x1f\x8b"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.([56]\d|70|8[01])")
_UID = re.compile(r"[0-9.]{1,64}")
_START_OF_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}  # of JPEG and JPEG-LS
_J2K_SIZE = b"\xff\x4f\xff\x51"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"

_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file (132 or more) are those of DICOM: its mark, or a data set without preamble."""
    if head[128:132] == b"DICM":
        return True
    if head[:4] in (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00") and head[4:6] in _VALUE_REPRESENTATIONS:
        return True  # the file meta group, its preamble lost
    order = {b"\x08\x00": "little", b"\x00\x08": "big"}.get(head[:2])
    if order is None or len(head) < 12:
        return False
    element = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if element > 0x0070:  # group 0008 begins with its length, character set, image type, instance or class
        return False
    length = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
    return head[4:6] in _VALUE_REPRESENTATIONS or (length <= 256 and length % 2 == 0)


class _Forward(io.RawIOBase):
    """A forward stream made seekable by keeping what was read: small reads, and no more than is asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._kept, self._at, self._ended = stream, bytearray(), 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._fill(None)
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._kept)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = None if size is None or size < 0 else self._at + size
        self._fill(end)
        found = bytes(self._kept[self._at : end])
        self._at += len(found)
        return found

    def _fill(self, end: int | None) -> None:
        while not self._ended and (end is None or len(self._kept) < end):
            missing = _CHUNK_BYTES if end is None else max(_CHUNK_BYTES, end - len(self._kept))
            more = self._stream.read(missing)
            self._kept += more
            self._ended = not more


def read_header(stream: BinaryIO) -> "Dataset":
    """All that stands before the pixels of a DICOM stream, gzipped or not; no more of it is read than that takes.

    Raises:
        UnreadableError: it is no DICOM, or its header is damaged.
    """
    forward = _Forward(stream)
    head = forward.read(132)
    forward.seek(0)
    if head[:2] == GZIP_MARK:
        with gzip.GzipFile(fileobj=forward) as packed:
            return read_header(packed)  # type: ignore[arg-type]
    return _parse(forward, head)


def _parse(stream: Any, head: bytes) -> "Dataset":
    """The data set before the pixels; the stream stands then at the pixels' element, or at its end."""
    import pydicom

    if not looks_like_dicom(head):
        raise UnreadableError("it is no DICOM file: neither DICOM's mark nor a data set begins it")
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    except Exception as error:  # the parser raises whatever a damaged file drives it to
        raise UnreadableError(f"its DICOM header is damaged: {_word_for(error)}") from error


def _word_for(error: Exception) -> str:
    if isinstance(error, EOFError | OSError):
        return "it ends too early"
    return "its compressed part is cut off" if isinstance(error, zlib.error) else "an element of it cannot be parsed"


def numbers_of(dataset: "Dataset", keyword: str) -> list[float]:
    """The finite numbers of an element; empty where it is missing, empty, or holds anything that is no number."""
    try:
        value: Any = dataset.get(keyword)
        many = [] if value is None or value == "" else value
        many = list(many) if hasattr(many, "__iter__") and not isinstance(many, str) else [many]
        found = [float(number) for number in many]
    except Exception:  # DS and IS hold text, and archives hold any text
        return []
    return found if all(np.isfinite(found)) else []


def number_of(dataset: "Dataset", keyword: str) -> float | None:
    """The element's first number, if any."""
    found = numbers_of(dataset, keyword)
    return found[0] if found else None


def whole_of(dataset: "Dataset", keyword: str, otherwise: int = 0) -> int:
    """The element's first number as a whole one, else ``otherwise``."""
    found = number_of(dataset, keyword)
    return otherwise if found is None else int(found)


@dataclass(frozen=True)
class PixelFormat:
    """How the frames of a file are laid out, with what a header leaves out filled in.

    Attributes:
        rows, columns, frames, samples: their numbers.
        allocated, stored: bits; ``shift`` how far the value stands above bit 0 (left-justified files of the nineties).
        signed: whether stored values are.
        photometric: ``MONOCHROME2`` and the like.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    shift: int
    signed: bool
    photometric: str


def pixel_format(dataset: "Dataset", pixel_bytes: int | None = None) -> PixelFormat:
    """The layout of the frames.

    Raises:
        UnreadableError: rows or columns are missing.
    """
    rows, columns = whole_of(dataset, "Rows"), whole_of(dataset, "Columns")
    if rows < 1 or columns < 1:
        raise UnreadableError("its header does not say how many rows and columns it has")
    frames = max(1, whole_of(dataset, "NumberOfFrames", 1))
    photometric = text_of(dataset, "PhotometricInterpretation").upper()
    samples = whole_of(dataset, "SamplesPerPixel") or (3 if photometric[:3] in ("RGB", "YBR") else 1)
    allocated = whole_of(dataset, "BitsAllocated") or _implied_bits(pixel_bytes, rows * columns * frames * samples)
    stored = whole_of(dataset, "BitsStored") or allocated
    stored = min(stored, allocated)
    high = whole_of(dataset, "HighBit", stored - 1)
    shift = high + 1 - stored if stored <= high < allocated else 0
    return PixelFormat(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        allocated=allocated,
        stored=stored,
        shift=shift,
        signed=whole_of(dataset, "PixelRepresentation") == 1,
        photometric=photometric or ("RGB" if samples == 3 else "MONOCHROME2"),
    )


def _implied_bits(pixel_bytes: int | None, values: int) -> int:
    return 8 if pixel_bytes is not None and pixel_bytes < 2 * values else 16


class DicomFile:
    """A DICOM file in memory; frames are decoded one by one, as they are asked for.

    Args:
        data: the whole file, gzipped or not.
        most_bytes: a gzipped file that unpacks to more is refused.

    Attributes:
        header: the data set before the pixels.
        format: how the frames are laid out.

    Raises:
        UnreadableError: it is no DICOM, or has no pixels.
    """

    def __init__(self, data: bytes, most_bytes: int = 2 << 30) -> None:
        data = unpacked(data, most_bytes)
        self._data = data
        stream = io.BytesIO(data)  # shares the bytes, copies none
        self.header = _parse(stream, data[:132])
        self._syntax = _transfer_syntax_of(self.header)
        if self._syntax == _DEFLATED:
            self._take_inflated(data)
        else:
            self._find_pixels(stream, stream.tell())
        self.format = pixel_format(self.header, self._bytes)

    def _take_inflated(self, data: bytes) -> None:
        """The pixels of a deflated data set: they have no place in the file as it lies here."""
        import pydicom
        from pydicom.uid import ExplicitVRLittleEndian

        whole = pydicom.dcmread(io.BytesIO(data), force=True)
        keyword = next((name for name in PIXEL_ELEMENTS.values() if name in whole), None)
        if keyword is None:
            raise UnreadableError("it is a DICOM file without pixels")
        value = whole[keyword].value
        self._data, self._start, self._keyword, self._vr = value, 0, keyword, "OW"
        self._bytes: int | None = len(value)
        self._syntax = str(ExplicitVRLittleEndian)

    def _find_pixels(self, stream: io.BytesIO, at: int) -> None:
        """Notes which element holds the pixels, where its value begins and how long it is (none: encapsulated)."""
        implicit, little = self.header.original_encoding
        order: Literal["little", "big"] = "little" if little or little is None else "big"
        stream.seek(at)
        head = stream.read(12)
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        keyword = PIXEL_ELEMENTS.get((group << 16) | element)
        if keyword is None or len(head) < 12:
            raise UnreadableError("it is a DICOM file without pixels")
        explicit = not implicit and head[4:6] in _VALUE_REPRESENTATIONS
        length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
        self._start, self._keyword = at + (12 if explicit else 8), keyword
        self._vr = head[4:6].decode() if explicit else "OW"
        self._bytes = None if length == _UNDEFINED_LENGTH else length
        self._syntax = self._syntax or self._implied_syntax(bool(implicit), order)

    def _implied_syntax(self, implicit: bool, order: str) -> str:
        """Of a file without meta group: by the data set's own encoding, and the first bytes of a compressed frame."""
        from pydicom import uid

        if self._bytes is None:
            return _syntax_of(next(self._encapsulated(), b""))
        explicit = uid.ExplicitVRLittleEndian if order == "little" else uid.ExplicitVRBigEndian
        return str(uid.ImplicitVRLittleEndian if implicit else explicit)

    def _pixels(self) -> io.BytesIO:
        """A stream of its own at the pixels, as frames may be read by several at a time; it shares the bytes."""
        stream = io.BytesIO(self._data)
        stream.seek(self._start)
        return stream

    def _encapsulated(self) -> Iterator[bytes]:
        """The compressed frames, each whole."""
        from pydicom.encaps import generate_frames

        frames = max(1, whole_of(self.header, "NumberOfFrames", 1))
        offsets = self._extended_offsets()
        found = generate_frames(self._pixels(), number_of_frames=frames, extended_offsets=offsets)
        yield from islice(found, frames)

    def _extended_offsets(self) -> tuple[bytes, bytes] | None:
        table, lengths = (self.header.get(f"ExtendedOffsetTable{name}") for name in ("", "Lengths"))
        return (table, lengths) if table and lengths else None

    def frames(self) -> Iterator[NDArray[Any]]:
        """The frames in order: (H, W) stored values without their unused bits, or (H, W, 3) RGB.

        Raises:
            UnreadableError: pixels are cut off, or are fewer than the header says.
            Exception: of other kinds, from the decoders.
        """
        found = 0
        for frame in islice(self._decoded(), self.format.frames):
            yield frame if frame.ndim == 3 else self._cleared(frame)
            found += 1
        if found < self.format.frames:
            raise UnreadableError(f"it holds {found} frames where its header says {self.format.frames}")

    def _decoded(self) -> Iterator[NDArray[Any]]:
        if self._bytes is not None:
            self._check_length(self._bytes)
        if self._keyword in _FLOATS:
            return self._float_frames()
        if self._bytes is None:
            for number, frame in enumerate(self._encapsulated()):
                _check_whole(frame, self._syntax, number)
                self._check_size_of_stream(frame)
        return self._by_decoder()

    def _check_size_of_stream(self, frame: bytes) -> None:
        """A stream that is larger than its header says is not decoded: it could be of any size."""
        size = _size_of_stream(frame)
        layout = self.format
        if size is not None and size != (layout.rows, layout.columns):
            raise UnreadableError(
                f"its compressed pixels are {size[0]} x {size[1]}, "
                f"where its header says {layout.rows} x {layout.columns}"
            )

    def _by_decoder(self) -> Iterator[NDArray[Any]]:
        from pydicom.pixels.decoders.base import get_decoder

        try:
            decoder = get_decoder(self._syntax)
        except NotImplementedError as error:
            raise UnreadableError(f"its pixels are coded as {_name_of(self._syntax)}, which is not read") from error
        plugin = _preferred_plugin(self._syntax)
        try:
            for frame, _ in decoder.iter_array(self._pixels(), decoding_plugin=plugin, **self._decoding()):
                yield frame
        except (RuntimeError, ValueError) as error:
            raise UnreadableError(
                f"its pixels ({_name_of(self._syntax)}) cannot be decoded: {_cause_of(error)}"
            ) from error

    def _decoding(self) -> dict[str, Any]:
        """What a decoder is told of the pixels; grey values come as they lie, for :meth:`_cleared`."""
        layout = self.format
        options: dict[str, Any] = {
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": layout.frames,
            "samples_per_pixel": layout.samples,
            "photometric_interpretation": layout.photometric,
            "bits_allocated": layout.allocated,
            "bits_stored": layout.allocated if layout.shift else layout.stored,
            "pixel_representation": int(layout.signed),
            "pixel_keyword": self._keyword,
            "pixel_vr": self._vr,
            "allow_excess_frames": False,
            "correct_unused_bits": layout.samples > 1,
        }
        if layout.samples > 1:
            options["planar_configuration"] = whole_of(self.header, "PlanarConfiguration")
        offsets = self._extended_offsets() if self._bytes is None else None
        return options | ({"extended_offsets": offsets} if offsets else {})

    def _float_frames(self) -> Iterator[NDArray[Any]]:
        layout, kind = self.format, _FLOATS[self._keyword]
        _, little = self.header.original_encoding
        stream = self._pixels()
        size = layout.rows * layout.columns * np.dtype(kind).itemsize
        for _ in range(layout.frames):
            values = np.frombuffer(stream.read(size), (">" if little is False else "<") + kind)
            yield values.astype(kind).reshape(layout.rows, layout.columns)

    def _check_length(self, there: int) -> None:
        """Native pixels must all be there: a cut file would be filled up or read past its end."""
        layout = self.format
        bits = 8 * np.dtype(_FLOATS[self._keyword]).itemsize if self._keyword in _FLOATS else layout.allocated
        values = layout.rows * layout.columns * layout.frames * layout.samples
        if layout.photometric == "YBR_FULL_422":
            values = values * 2 // 3
        needed = -(-values * bits // 8)
        there = min(there, len(self._data) - self._start)
        if there < needed:
            raise UnreadableError(f"its pixels are cut off: {there} bytes of {needed} are there")

    def _cleared(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Without the bits that BitsStored and HighBit exclude: overlays and rubbish above, shifted values below."""
        layout = self.format
        frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
        if frame.dtype.kind not in "iu" or layout.allocated == 1:
            return frame
        width = 8 * frame.dtype.itemsize
        above = width - layout.stored - layout.shift
        if above < 0 or (above == 0 and layout.shift == 0):
            return frame
        cleared: NDArray[Any] = np.right_shift(np.left_shift(frame, above), above + layout.shift)
        return cleared


def pixel_digest(data: bytes, frame: int) -> str:
    """Of a frame's stored values, to find copies under other names; hexadecimal."""
    file = DicomFile(data)
    values = next(islice(file.frames(), frame, None))
    return hashlib.sha256(values.tobytes()).hexdigest()


def unpacked(data: bytes, most_bytes: int) -> bytes:
    """A gzipped file unpacked, any other as it is.

    Raises:
        UnreadableError: it is cut off, or unpacks to more than ``most_bytes``.
    """
    if data[:2] != GZIP_MARK:
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            found = stream.read(most_bytes + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UnreadableError("its gzip stream is cut off or damaged") from error
    if len(found) > most_bytes:
        raise UnreadableError(f"it unpacks to more than {most_bytes} bytes, the budget of one file")
    return found


def _transfer_syntax_of(header: "Dataset") -> str:
    meta = getattr(header, "file_meta", None)
    return str(meta.get("TransferSyntaxUID") or "") if meta is not None else ""


def _syntax_of(frame: bytes) -> str:
    """The transfer syntax that the first bytes of a compressed frame show."""
    from pydicom import uid

    if frame[:4] in (_J2K_SIZE, b"\0\0\0\x0c"):
        return str(uid.JPEG2000)
    if frame[:2] != b"\xff\xd8":
        return str(uid.RLELossless)
    kinds = {0xC0: uid.JPEGBaseline8Bit, 0xC1: uid.JPEGExtended12Bit, 0xC3: uid.JPEGLossless, 0xF7: uid.JPEGLSLossless}
    return next((str(kinds[code]) for code, _, _ in _segments(frame) if code in kinds), str(uid.JPEGBaseline8Bit))


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker codes of a JPEG stream, where each one's segment begins and ends, up to and including its first scan."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        code = stream[at + 1]
        if code == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        start = at + 2
        at = start + int.from_bytes(stream[start : start + 2], "big")
        yield code, start, at
        if code == _START_OF_SCAN:
            return


def _check_whole(frame: bytes, syntax: str, number: int) -> None:
    """A JPEG or JPEG-LS stream without its end mark is cut off: decoders fill up the rest and say nothing."""
    if not frame:
        raise UnreadableError(f"frame {number} is empty")
    if not frame.startswith(b"\xff\xd8") or not _JPEG.fullmatch(syntax):
        return
    scan = next((end for code, _, end in _segments(frame) if code == _START_OF_SCAN), None)
    if scan is None or frame.rfind(_END_OF_IMAGE) < scan:
        raise UnreadableError(f"its JPEG stream is cut off (frame {number}: {len(frame)} bytes without an end mark)")


def _size_of_stream(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns by a JPEG's frame header (ISO 10918-1, B.2.2) or a JPEG 2000's SIZ (ISO 15444-1, A.5.1)."""
    if frame.startswith(_J2K_SIZE):
        width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
        return height - top, width - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = next((start + 3 for code, start, _ in _segments(frame) if code in _START_OF_FRAME), None)  # behind its depth
    if at is None:
        return None
    return int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")


def _name_of(syntax: str) -> str:
    from pydicom.uid import UID

    name = str(UID(syntax).name)
    return name if name != syntax else f"transfer syntax {syntax}" if _UID.fullmatch(syntax) else "an unknown way"


@cache
def _preferred_plugin(syntax: str) -> str:
    """CharLS decodes JPEG-LS several times as fast as libjpeg, which pydicom would take first."""
    jpeg_ls = syntax in ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
    return "pyjpegls" if jpeg_ls and find_spec("jpeg_ls") else ""


def _cause_of(error: Exception) -> str:
    """The decoders' own words, without pydicom's in front of them; headers they do not quote."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
    return "; ".join(others or [first])[:200]
