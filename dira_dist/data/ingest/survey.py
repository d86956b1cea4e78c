"""What the files of a set have in common, settled before any is converted: its mode, and one scale for signed numbers.

Depth is told by the headers of all files. Whether an image coded in colour shows any is told by its pixels: of a random
sample of such files, and of those whose header stands too far inside them.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dira_dist.config import RequestError
from dira_dist.data.ingest.depths import Depth
from dira_dist.data.ingest.greys import mode_of_dicom
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.items import VOLUME_KINDS, Item
from dira_dist.data.ingest.listing import one_file_of
from dira_dist.data.ingest.picture import Range, RasterRules
from dira_dist.data.ingest.pixels import PictureMode, mode_of
from dira_dist.data.ingest.plan import Plan
from dira_dist.data.ingest.readers import quiet_decoders, read_pictures
from dira_dist.data.ingest.tiffs import signed_range
from dira_dist.data.store import StoreError, open_store

T = TypeVar("T")

SAMPLED_FILES = 32  # with none in colour among them, fewer than one in ten are, all but surely
_MOST_UNKNOWN = 256  # files of a depth that only their pixels tell; they are decoded twice
_RANGE_FILES = 256
_NAMES: dict[PictureMode, str] = {"L": "8-bit grey", "I;16": "16-bit grey", "RGB": "8-bit colour"}


@dataclass(frozen=True)
class Survey:
    """What holds for all samples of a set.

    Attributes:
        mode: of its images; none for volumes and cubes.
        remark: what that costs, for a person; empty where nothing is lost or nothing was chosen.
        signed_range: which values become black and white in TIFF files of signed numbers; none without such files.
    """

    mode: PictureMode | None
    remark: str = ""
    signed_range: Range | None = None


def survey(plan: Plan) -> Survey:
    """Looks into the files of a plan.

    Raises:
        RequestError: the depth of many files is told by nothing but their pixels, and no mode was asked for.
    """
    if plan.content in ("volumes", "cubes"):
        return Survey(None)
    items = sorted((item for part in plan.parts.values() for item in part), key=lambda item: item.key)
    scale = _signed_range(plan, items)
    if plan.options.mode is not None:
        return Survey(plan.options.mode, "", scale)
    depths = _depths(plan, items)
    found: dict[str, list[Item]] = {"grey": [], "deep": [], "colour": [], "unknown": []}
    for item in items:
        found[depths[item.key]].append(item)
    if len(found["unknown"]) > _MOST_UNKNOWN:
        example = plan.called(found["unknown"][0].files[0])
        raise RequestError(
            f"the depth of {len(found['unknown'])} files ({example} for one) is told by nothing but their pixels, "
            "and one mode holds for the whole set; say --mode L, --mode 'I;16' or --mode RGB."
        )
    coloured = _sample(found["colour"])
    modes = Counter(mode for item in (*coloured, *found["unknown"]) for mode in _modes_in(plan, item, scale))
    deep = len(found["deep"]) + modes["I;16"]
    colour = round(modes["RGB"] * max(1, len(found["colour"])) / max(1, len(coloured))) if modes["RGB"] else 0
    mode = _richest(deep, colour, plan.options.coding)
    return Survey(mode, _cost(mode, deep, colour, len(items)), scale)


def _richest(deep: int, colour: int, coding: str) -> PictureMode:
    """16 bits go before colour, as colour in a radiograph is a rendering; a set coded in JPEG has 8 bits."""
    if deep and coding == "png":
        return "I;16"
    return "RGB" if colour else "L"


def _cost(mode: PictureMode, deep: int, colour: int, files: int) -> str:
    said = f"mode {mode} ({_NAMES[mode]})"
    if mode == "I;16" and colour:
        return f"{said}: about {colour} of {files} files are in colour and become grey; --mode RGB keeps colour"
    if mode != "I;16" and deep:
        return f"{said}: about {deep} of {files} files have more than 8 bits and lose them; --coding png keeps 16 bits"
    return said


def _depths(plan: Plan, items: list[Item]) -> dict[str, Depth]:
    """By key, from what the listing saw of rasters and of DICOM headers."""
    found: dict[str, Depth] = {}
    for item in items:
        if item.kind in VOLUME_KINDS:
            found[item.key] = "deep"  # slices of volumes, whose values seldom are 8 bits deep
        elif item.kind == "dicom":
            found[item.key] = plan.headers[item.files[0]].depth
        else:
            found[item.key] = plan.depths.get(item.files[0], "unknown")
    return found


def _sample(items: list[Item]) -> list[Item]:
    """The first by their keys, which are random and always the same."""
    return items[:SAMPLED_FILES]


def _modes_in(plan: Plan, item: Item, scale: Range | None) -> set[PictureMode]:
    rules = raster_rules(plan, scale)

    def modes(data: bytes) -> set[PictureMode]:
        if item.kind == "dicom":
            return {mode_of_dicom(data)}
        return {mode_of(picture.pixels) for picture in read_pictures(data, rules)}

    return _of_one(plan, item, modes) or set()


def raster_rules(plan: Plan, scale: Range | None, enough_px: int | None = None) -> RasterRules:
    """How the plan wants flat images read."""
    options = plan.options
    return RasterRules(options.max_raster_px, enough_px, parse_intensity(options.intensity), scale)


def _signed_range(plan: Plan, items: list[Item]) -> Range | None:
    """Smallest and largest value of TIFF files of signed numbers: of all, or of a random sample of many."""
    if plan.options.intensity != "window":
        return None
    tiffs = [item for item in items if item.kind == "tiff" and plan.depths.get(item.files[0]) in ("deep", "unknown")]
    chosen = random.Random(0).sample(tiffs, min(len(tiffs), _RANGE_FILES))
    ranges = [found for item in chosen if (found := _of_one(plan, item, signed_range)) is not None]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _of_one(plan: Plan, item: Item, look: Callable[[bytes], T]) -> T | None:
    """What ``look`` finds in a file; none for one that cannot be read, which is named when its turn comes."""
    store = open_store(plan.source)
    try:
        with one_file_of(store):
            data = store.read_bytes(item.files[0])
        with quiet_decoders():
            return look(data)
    except (RequestError, StoreError):
        raise
    except Exception:  # decoders raise whatever a damaged file drives them to
        return None
