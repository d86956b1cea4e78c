"""Ordinary files as entries, read by the readers of ``dira-dist shard`` as the model's training images were."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dira_dist.config import RequestError
from dira_dist.data.cores import usable_cores
from dira_dist.data.ingest.convert import Converter, Task
from dira_dist.data.ingest.cubes import Source
from dira_dist.data.ingest.failures import UnreadableError, reason_of
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.items import VOLUME_KINDS, Item
from dira_dist.data.ingest.listing import without_suffix
from dira_dist.data.ingest.names import printable
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.picture import Picture, RasterRules
from dira_dist.data.ingest.pixels import PictureMode, mode_of
from dira_dist.data.ingest.plan import Plan
from dira_dist.data.ingest.planning import make_plan
from dira_dist.data.ingest.readers import quiet_decoders
from dira_dist.data.ingest.slices import slices_of
from dira_dist.data.ingest.survey import raster_rules, survey
from dira_dist.data.ingest.volumes import Volume
from dira_dist.data.ingest.work import settle_scales
from dira_dist.data.store import StoreError
from dira_dist.prediction.inputs import Entry, Framing, Opened, View
from dira_dist.prediction.model import FineTuned, Model
from dira_dist.prediction.options import EmbedOptions, PredictOptions

_MODES = ("L", "I;16", "RGB")
_AHEAD = 8  # flat files read while the network computes
_VOLUMES_FROM_TRAINING = ("intensity", "spacing", "tilt", "spacing_tolerance", "channels")
_FROM_TRAINING = ("image_size", "side", "intensity", "axis", "tilt", "spacing_tolerance")


@dataclass(frozen=True)
class FileReader:
    """Opens files.

    Attributes:
        address: of the files.
        options: how an archive becomes a set that the model knows.
        mode: of the pixels that it knows; none of a model of volumes.
        rules: how flat images are read.
        framing: how they are brought before the network.
        array_type: of the values of a set that the model of volumes learned from; none where nobody knows.
    """

    address: str
    options: ShardOptions
    mode: PictureMode | None
    rules: RasterRules
    framing: Framing
    array_type: str | None = None

    @cached_property
    def _converter(self) -> Converter:
        return Converter(self.address, self.options, self.mode, self.rules)

    def open(self, entries: Sequence[Entry]) -> Iterator[Opened]:
        """See :class:`~dira_dist.prediction.inputs.Reader`. What follows a volume waits for it."""
        waiting: deque[Future[Opened]] = deque()
        rest = iter(entries)
        with quiet_decoders(), ThreadPoolExecutor(min(_AHEAD, usable_cores()), "read-files") as pool:
            while True:
                while len(waiting) < _AHEAD and (entry := next(rest, None)) is not None:
                    waiting.append(pool.submit(self._open, entry))
                    if is_volume(entry):
                        break
                if not waiting:
                    return
                yield waiting.popleft().result()

    def _open(self, entry: Entry) -> Opened:
        """Whatever a damaged file drives its decoder to becomes the entry's reason."""
        if entry.item is None:
            return Opened(entry, iter(()), reason=entry.reason)
        opened = Opened(entry, iter(()))
        try:
            task = Task(entry.item, scale=entry.scale)
            files = self._converter.fetch(task)
            views = self._views(opened, task, files)
            first = list(islice(views, 2 if not is_volume(entry) else 0))  # a single picture is read here, in a thread
            opened.views = _until_error(chain(first, views), opened)
        except (RequestError, StoreError):
            raise
        except Exception as error:
            opened.reason = reason_of(error)
        return opened

    def _views(self, opened: Opened, task: Task, files: list[bytes]) -> Iterator[View]:
        if not is_volume(opened.entry):
            return self._pictures(opened, task, files)
        read = self._slices if self.options.content != "volumes" else self._whole
        return read(opened, task.item, files)

    def _pictures(self, opened: Opened, task: Task, files: list[bytes]) -> Iterator[View]:
        opened.files = files if task.item.kind == "dicom" else ()
        pictures = self._converter.pictures(task, files[0])
        head = list(islice(pictures, 2))
        if not head:
            raise UnreadableError("it holds no image")
        for number, picture in enumerate(chain(head, pictures)):
            yield self._view(opened, picture, number if len(head) > 1 else None)

    def _view(self, opened: Opened, picture: Picture, number: int | None) -> View:
        opened.notes += [note for note in (*picture.notes, *self._losses(picture)) if note not in opened.notes]
        return self.framing.view(self._converter.fitted(picture), picture.original_px, number)

    def _losses(self, picture: Picture) -> Iterator[str]:
        if self.mode != "RGB" and mode_of(picture.pixels) == "RGB":
            yield "it is in colour and became grey, as the model's images are"

    def _channels(self, opened: Opened, item: Item, files: list[bytes]) -> list[Volume]:
        """The volume of an item, or its channels: answers go back to where the first one lies."""
        volumes, first = self._converter.channels(item, list(files)), (item.channels or (item,))[0]
        opened.volume = volumes[0]
        opened.files = files[: len(first.files)] if first.kind == "nifti" else ()
        opened.notes += [note for volume in volumes for note in volume.notes]
        return volumes

    def _whole(self, opened: Opened, item: Item, files: list[bytes]) -> Iterator[View]:
        """The volume as a set would hold it, whose axes the decoder turns to (x, y, z)."""
        source = Source.of(self._channels(opened, item, files), None, self.options)
        opened.grid = source.grid
        voxels = source.voxels()
        if self.array_type is not None and voxels.dtype != self.array_type:
            if not np.can_cast(voxels.dtype, self.array_type):
                raise UnreadableError(
                    f"its values are {voxels.dtype}, and the model learned from {self.array_type} as they were stored: "
                    "train it on a set that was made with --intensity, which brings all values to one scale"
                )
            voxels = voxels.astype(self.array_type)
        yield self.framing.volume_view(voxels.transpose(0, 3, 2, 1))

    def _slices(self, opened: Opened, item: Item, files: list[bytes]) -> Iterator[View]:
        (volume,) = self._channels(opened, item, files)
        rule = parse_intensity(self.options.intensity)
        return (
            self._view(opened, picture, number) for number, picture in slices_of(volume, self.options.axis, 1, rule)
        )


def _until_error(views: Iterator[View], opened: Opened) -> Iterator[View]:
    try:
        yield from views
    except (RequestError, StoreError):
        raise
    except Exception as error:
        opened.reason = reason_of(error)


def is_volume(entry: Entry) -> bool:
    """Whether it is a volume, which is cut into slices."""
    return entry.item is not None and entry.item.kind in VOLUME_KINDS


@dataclass(frozen=True)
class FileSource:
    """A source of files as a whole.

    Attributes:
        reader: opens them.
        entries: in the order of their names.
        digest: salted, over names, sizes and version marks of all files.
        ignored: how many files are no images.
        notes: what a person should know, without names.
        has_dicom: whether any of them is DICOM.
    """

    reader: FileReader
    entries: Sequence[Entry]
    digest: str
    ignored: int
    notes: tuple[str, ...]
    has_dicom: bool


def find_files(source: str, model: Model, options: EmbedOptions, processes: int) -> FileSource:
    """Lists a source and decides on every file, as ``shard`` does.

    Args:
        source: folder or ``s3://bucket/prefix``.
        model: that will see them.
        options: as they were given.
        processes: that may read while grey scales of series are settled.

    Raises:
        RequestError: there are no images, or the model takes others than files hold.
    """
    plan = make_plan(source, shard_options(model, options))
    found = survey(plan)
    settle_scales(plan, processes)
    is_whole = plan.options.content == "volumes"
    assert is_whole or found.mode is not None, "volumes are cut into slices"
    reader = FileReader(
        source,
        plan.options,
        found.mode,
        raster_rules(plan, found.signed_range, plan.options.image_size),
        Framing(model.image_size, model.in_channels, "slide" if is_whole else model.fit),
        model.fed.get("array_type"),
    )
    notes = list(plan.warnings)
    if not model.fed:
        notes.append(
            "the model is older and does not say how its images were made: files are read as shard reads them unless "
            "told otherwise (--content, --axis, --intensity)"
        )
        notes += [found.remark] if found.remark else []
    pool = options.pool if isinstance(options, PredictOptions) else None
    has_dicom = any(item.kind in ("dicom", "series") for items in plan.parts.values() for item in items)
    entries = sorted(_entries(plan, options, pool), key=lambda entry: entry.name)
    return FileSource(reader, entries, plan.source_digest, len(plan.ignored), tuple(notes), has_dicom)


def shard_options(model: Model, options: EmbedOptions) -> ShardOptions:
    """By which an archive becomes a set like the one that the model was trained on.

    Raises:
        RequestError: it was trained on what no ordinary file holds.
    """
    fed, mode = model.fed, model.fed.get("mode")
    if model.dims == 3:
        return _volume_options(model, options)
    if model.in_channels not in (1, 3) or mode == "planes":
        raise RequestError(
            f"{model.address}: takes images of {model.in_channels} channels, and ordinary files hold 1 (grey) or 3 "
            "(colour): give SOURCE as a shard set of such images"
        )
    known = {name: fed[name] for name in _FROM_TRAINING if name in fed}
    asked = {name: getattr(options, name) for name in ("axis", "intensity", "content") if getattr(options, name)}
    content = fed.get("content") if fed.get("content") == "slices" else "images"
    rest = {name: getattr(options, name) for name in ("include", "salt_file", "max_raster_mpx", "volume_budget_gib")}
    values: dict[str, Any] = {"content": content, **known, **rest, **asked}
    names = "keys" if options.names == "keys" else None  # on a console, too
    return ShardOptions(**values, names=names, mode=mode if mode in _MODES else None)


def _volume_options(model: Model, options: EmbedOptions) -> ShardOptions:
    """Raises:
    RequestError: the model asks for cubes, or an option is of slices.
    """
    if isinstance(model, FineTuned) and model.facts.task == "classify":
        raise RequestError(
            f"{model.address}: classifies cubes, and files hold whole volumes: cut those that are asked about "
            "(dira-dist shard SOURCE SET --content cubes --cube ... --centres TABLE.csv) and give that set as SOURCE"
        )
    if wrong := [name for name in ("axis", "content") if getattr(options, name)]:
        raise RequestError(f"{wrong[0]}: is of slices, and {model.address} takes whole volumes: leave it out")
    known = {name: model.fed[name] for name in _VOLUMES_FROM_TRAINING if model.fed.get(name) is not None}
    if model.in_channels > 1 and not known.get("channels"):
        raise RequestError(
            f"{model.address}: takes {model.in_channels} channels, and does not remember which: give SOURCE as a set"
        )
    asked = {"intensity": options.intensity} if options.intensity else {}
    rest = {name: getattr(options, name) for name in ("include", "salt_file", "volume_budget_gib")}
    names = "keys" if options.names == "keys" else None  # on a console, too
    return ShardOptions(**{"content": "volumes", "names": names, **known, **rest, **asked})


def _entries(plan: Plan, options: EmbedOptions, pool: str | None) -> Iterator[Entry]:
    """A series goes by the first name of its files, and its second stack by that with a number."""
    by_key = options.names == "keys"
    items = sorted((item for part in plan.parts.values() for item in part), key=lambda item: (_name_of(item), item.key))
    stems = Counter(without_suffix(_name_of(item)) for item in items)
    seen: Counter[str] = Counter()
    for item in items:
        file = _name_of(item)
        seen[file] += 1
        again = f"-{seen[file]}" if seen[file] > 1 else ""
        stem = file if stems[without_suffix(file)] > 1 else without_suffix(file)
        name = item.key if by_key else f"{printable(file)}{again}"
        own = item.key if by_key else f"{printable(stem)}{again}"
        yield Entry(name, own, _group(plan, item, pool, name, by_key), item, scale=plan.scales.get(item.files[0]))
    for file, reason in plan.skipped:
        name = plan.salt.digest("sample", file) if by_key else printable(file)
        yield Entry(name, name, reason=reason)


def _name_of(item: Item) -> str:
    """The first name of its files; of several channels the name of their case."""
    return item.called if item.channels else min(item.files)


def _group(plan: Plan, item: Item, pool: str | None, name: str, by_key: bool) -> str:
    """Whom an entry is pooled with; patients and studies by a salted hash, as in shards."""
    if pool == "patient":
        return plan.groups.get(item.key, "")
    if pool == "study":
        header = plan.headers.get(item.files[0])
        return plan.salt.digest("study", header.study) if header and header.study else ""
    if pool == "folder":
        folders = PurePosixPath(item.files[0]).parts[:-1]
        folder = folders[0] if folders else ""
        return plan.salt.digest("group", folder) if by_key and folder else printable(folder)
    return name if pool == "file" else ""
