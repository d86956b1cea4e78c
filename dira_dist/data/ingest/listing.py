"""What lies in a source: its image files, their kinds, label maps beside them, and what DICOM headers tell a plan."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

from dira_dist.config import RequestError
from dira_dist.data.ingest.dicom import looks_like_dicom
from dira_dist.data.ingest.names import name_bytes
from dira_dist.data.ingest.readers import SUFFIXES, FileKind, UnreadableError
from dira_dist.data.ingest.salt import Salt
from dira_dist.data.ingest.tables import stem_of
from dira_dist.data.store import (
    ChangedObjectError,
    DeniedObjectError,
    MissingObjectError,
    Store,
    check_reachable,
    open_store,
)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_THREADS = 16
_BATCH = 1024


@dataclass(frozen=True)
class Listing:
    """A source at a glance.

    Attributes:
        files: image files by path, with their kinds.
        masks: label maps by path without suffix.
        unreadable: why files without a suffix could not be looked into, by path; they may be images.
        ignored: how many files are no images.
        digest: salted, over names, sizes and ETags of files and masks; hexadecimal.
    """

    files: dict[str, FileKind]
    masks: dict[str, str]
    unreadable: dict[str, str]
    ignored: int
    digest: str


def list_source(source: str, masks: str | None, salt: Salt) -> Listing:
    """Lists ``source`` and the folder of ``masks``, which may lie inside it.

    Raises:
        RequestError: there are no images.
    """
    check_reachable(source)
    store = open_store(source)
    inside = _below(masks, source) if masks else None
    digest = hashlib.blake2b(key=salt.secret, digest_size=16)
    files: dict[str, FileKind] = {}
    unreadable: dict[str, str] = {}
    ignored = 0
    visible = (found for found in store.list() if not _is_hidden(found.key))
    candidates = (found for found in visible if not (inside and found.key.startswith(inside)))
    for found, kind in in_threads(lambda found: _kind_or_trouble(store, found.key), candidates):
        if kind is None:
            ignored += 1
        elif isinstance(kind, UnreadableError):
            unreadable[found.key] = str(kind)
        else:
            files[found.key] = kind
            digest.update(name_bytes(f"{found.key}\0{found.bytes}\0{found.etag}\n"))
    if not files:
        raise RequestError(
            f"no images in {source}: of {ignored} files none is PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MHA "
            f"(by suffix: {', '.join(SUFFIXES)}; DICOM also without one)."
        )
    label_maps = list_masks(masks, digest.update) if masks else {}
    return Listing(files, label_maps, unreadable, ignored, digest.hexdigest())


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
        raise UnreadableError(f"it cannot be read: {error}") from error


def _kind_or_trouble(store: Store, key: str) -> FileKind | UnreadableError | None:
    try:
        return kind_of(store, key)
    except UnreadableError as error:
        return error


def kind_of(store: Store, key: str) -> FileKind | None:
    """By its suffix; a file without one, or with a number for one, by DICOM's mark or a data set without it.

    Raises:
        UnreadableError: the file must be looked into, and cannot be.
    """
    name = PurePosixPath(key).name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    suffix = PurePosixPath(name).suffix
    if name.startswith("dicomdir") or (suffix and not suffix[1:].isdigit()):
        return None
    with one_file_of(store), store.open(key) as stream:
        return "dicom" if looks_like_dicom(stream.read(132)) else None


def list_masks(address: str, note: Callable[[bytes], None]) -> dict[str, str]:
    """Label maps by their path without suffix; ``note`` is told what they are, for a digest.

    Raises:
        RequestError: there are none.
    """
    check_reachable(address)
    masks: dict[str, str] = {}
    for found in open_store(address).list():
        if not _is_hidden(found.key) and any(found.key.lower().endswith(suffix) for suffix in SUFFIXES):
            note(name_bytes(f"mask {found.key}\0{found.bytes}\0{found.etag}\n"))
            masks[without_suffix(found.key)] = found.key
    if not masks:
        raise RequestError(f"masks {address}: there is no label map (PNG, TIFF or NIfTI) in it.")
    return masks


def without_suffix(key: str) -> str:
    """``a/scan`` for ``a/scan.nii.gz``."""
    return str(PurePosixPath(key).with_name(stem_of(key)))


def in_threads(action: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[tuple[ItemT, ResultT]]:
    """Each item with the action's result, in order, a batch at a time: small reads from a bucket are all waiting."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(rest, _BATCH)):
            yield from zip(batch, pool.map(action, batch), strict=True)
