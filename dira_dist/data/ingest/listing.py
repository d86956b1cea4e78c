"""What lies in a source: its image files, their kinds, label maps beside them, and what DICOM headers tell a plan."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

from dira_dist.config import RequestError
from dira_dist.data.ingest.depths import HEAD_BYTES, Depth, depth_in, depth_of_tiff
from dira_dist.data.ingest.dicom import GZIP_MARK, looks_like_dicom
from dira_dist.data.ingest.kinds import left_out_raster, why_ignored
from dira_dist.data.ingest.names import name_bytes
from dira_dist.data.ingest.readers import SUFFIXES, FileKind, UnreadableError, flat_kind, quiet_decoders
from dira_dist.data.ingest.salt import Salt
from dira_dist.data.ingest.tables import stem_of
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.store import (
    ChangedObjectError,
    DeniedObjectError,
    LocalStore,
    MissingObjectError,
    Store,
    StoreError,
    check_reachable,
    open_store,
)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MaskFiles = Mapping[str, tuple[str, ...]]  # label maps by their path without suffix

_THREADS = 16
_BATCH = 1024


@dataclass(frozen=True)
class Listing:
    """A source at a glance.

    Attributes:
        files: image files by path, with their kinds.
        depths: what the first bytes tell of the pixels of flat images, by path.
        masks: label maps.
        unreadable: why files could not be looked into, by path; they may be images.
        ignored: why the other files are not read, by path, as the end of a sentence.
        minded: those of them that may hold images, which are lost so.
        copies: files that hold the same bytes, together.
        versions: size and ETag, or time, of each image file, by path.
        digest: salted, over names, sizes and ETags of files and masks; hexadecimal.
    """

    files: dict[str, FileKind] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)
    masks: MaskFiles = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    minded: set[str] = field(default_factory=set)
    copies: list[tuple[str, ...]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    def ignore(self, key: str) -> None:
        """Notes a file that is not read."""
        self.ignored[key], minded = why_ignored(key)
        if minded:
            self.minded.add(key)


def list_source(source: str, masks: str | None, salt: Salt, include: Collection[str] = ()) -> Listing:
    """Lists ``source`` and the folder of ``masks``, which may lie inside it; of each file the first bytes are read.

    Args:
        source: address of the files.
        masks: address of the label maps.
        salt: for the digest.
        include: kinds of rasters that are read though they are seldom originals, see ``kinds.LEFT_OUT_RASTERS``.

    Raises:
        RequestError: there are no images.
    """
    check_reachable(source)
    store = open_store(source)
    inside = _below(masks, source) if masks else None
    digest = hashlib.blake2b(key=salt.secret, digest_size=16)
    listing, alike = Listing(), defaultdict[tuple[int, bytes], list[str]](list)
    visible = (found for found in store.list() if not _is_hidden(found.key))
    candidates = (found for found in visible if not (inside and found.key.startswith(inside)))
    with quiet_decoders():
        for found, look in in_threads(lambda found: _look(store, found.key, include), candidates):
            if _note(listing, found.key, look):
                digest.update(name_bytes(f"{found.key}\0{found.bytes}\0{found.etag}\n"))
                alike[found.bytes, look.digest].append(found.key)
                listing.versions[found.key] = f"{found.bytes} {found.etag or found.modified_ns}"
    listing.copies.extend(_copies(store, alike.values()))
    if isinstance(store, LocalStore):
        for key, reason in store.dead_links():
            if not _is_hidden(key):
                listing.ignored[key] = f"is {reason}"
                listing.minded.add(key)
    if not listing.files:
        raise RequestError(_no_images(source, listing.ignored))
    label_maps = list_masks(masks, digest.update) if masks else {}
    return replace(listing, masks=label_maps, digest=digest.hexdigest())


def _copies(store: Store, alike: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Of files of one size that begin alike those that are equal to the last byte; only these are read for it."""
    same: dict[bytes, list[str]] = defaultdict(list)
    candidates = (key for keys in alike if len(keys) > 1 for key in keys)
    for key, digest in in_threads(lambda key: _content_digest(store, key), candidates):
        if digest is not None:
            same[digest].append(key)
    return [tuple(keys) for keys in same.values() if len(keys) > 1]


def _content_digest(store: Store, key: str) -> bytes | None:
    try:
        with one_file_of(store), store.open(key) as stream:
            digest = hashlib.blake2b(digest_size=16)
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except UnreadableError:
        return None  # it is named when it is read
    return digest.digest()


def _no_images(source: str, ignored: Mapping[str, str]) -> str:
    kinds = Counter(ignored.values())
    reasons = "; ".join(f"{count} of them: it {reason}" for reason, count in kinds.most_common(3))
    return (
        f"no images in {source}: of {len(ignored)} files none is PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MHA "
        f"(by suffix: {', '.join(SUFFIXES)}; DICOM also without one){'. ' if reasons else ''}{reasons}."
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What the first bytes of a file tell: its kind (none: it is not read), depth, a digest of them, what is wrong."""

    kind: FileKind | None = None
    depth: Depth | None = None
    digest: bytes = b""
    problem: str = ""


def _look(store: Store, key: str, include: Collection[str]) -> _Look:
    """Of a file that by its name is no image nothing is read."""
    if not _may_be_image(key, include):
        return _Look()
    try:
        with one_file_of(store), store.open(key, ObjectRange(first_bytes=HEAD_BYTES)) as stream:
            head = stream.read(HEAD_BYTES)
            kind = kind_of(key, head)
            depth = depth_in(head) if kind in ("raster", "tiff") else None
            if kind == "tiff" and depth == "unknown" and isinstance(store, LocalStore):
                stream.seek(0)
                depth = depth_of_tiff(stream)
    except UnreadableError as error:
        return _Look(problem=str(error))
    return _Look(kind, depth, hashlib.blake2b(head, digest_size=8).digest())


def _note(listing: Listing, key: str, look: _Look) -> bool:
    """Puts a file where it belongs; whether it is an image file."""
    if look.problem:
        listing.unreadable[key] = look.problem
    elif look.kind is None:
        listing.ignore(key)
    else:
        listing.files[key] = look.kind
        if look.depth is not None:
            listing.depths[key] = look.depth
    return key in listing.files


def _below(folder: str, parent: str) -> str | None:
    """``masks/`` for ``data/masks`` below ``data``; none where it does not lie below."""
    parent, folder = parent.rstrip("/") + "/", folder.rstrip("/") + "/"
    return folder[len(parent) :] if folder.startswith(parent) and folder != parent else None


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


@contextmanager
def one_file_of(store: Store) -> Iterator[None]:
    """Tells trouble with one file from trouble with all.

    Raises:
        UnreadableError: the file has gone or changed since it was listed, or this user may not read it.
        RequestError, StoreError: its whole store is away.
    """
    try:
        yield
    except (MissingObjectError, DeniedObjectError, ChangedObjectError) as error:
        check_reachable(store.address)  # of a bucket or folder that has gone, every file is missing
        raise UnreadableError(_why_not(error)) from error


def _why_not(error: StoreError) -> str:
    """In words without the file's address."""
    if isinstance(error, MissingObjectError):
        return "it has gone since it was listed"
    if isinstance(error, ChangedObjectError):
        return "it has changed since it was listed"
    return "this user may not read it (access denied)"


def _may_be_image(key: str, include: Collection[str]) -> bool:
    """By its suffix, or for want of one; DICOM files often end in a number."""
    name = PurePosixPath(key).name.lower()
    if name.endswith(tuple(SUFFIXES)) or left_out_raster(name) in include:
        return True
    suffix = PurePosixPath(name).suffix
    return not name.startswith("dicomdir") and (not suffix or suffix[1:].isdigit())


def kind_of(key: str, head: bytes) -> FileKind | None:
    """What a file is by its first bytes, else what its suffix says it is: then it is damaged, and named as such."""
    kind = next((kind for suffix, kind in SUFFIXES.items() if key.lower().endswith(suffix)), None)
    if kind in ("nifti", "itk") or head.startswith(GZIP_MARK):
        return kind
    if looks_like_dicom(head):
        return "dicom"  # before all else: its preamble may hold the header of a TIFF
    return flat_kind(head) or kind


def list_masks(address: str, note: Callable[[bytes], None]) -> MaskFiles:
    """Label maps, by their path without suffix; ``note`` is told what they are, for a digest.

    Raises:
        RequestError: there are none.
    """
    check_reachable(address)
    masks: dict[str, list[str]] = defaultdict(list)
    for found in open_store(address).list():
        if not _is_hidden(found.key) and found.key.lower().endswith(tuple(SUFFIXES)):
            note(name_bytes(f"mask {found.key}\0{found.bytes}\0{found.etag}\n"))
            masks[without_suffix(found.key)].append(found.key)
    if not masks:
        raise RequestError(f"masks {address}: there is no label map (PNG, TIFF or NIfTI) in it.")
    return {name: tuple(keys) for name, keys in masks.items()}


def without_suffix(key: str) -> str:
    """``a/scan`` for ``a/scan.nii.gz``."""
    return str(PurePosixPath(key).with_name(stem_of(key)))


def in_threads(action: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[tuple[ItemT, ResultT]]:
    """Each item with the action's result, in order, a batch at a time: small reads from a bucket are all waiting."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(rest, _BATCH)):
            yield from zip(batch, pool.map(action, batch), strict=True)
