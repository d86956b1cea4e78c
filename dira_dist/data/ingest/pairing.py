"""Which label map belongs to which image, by their names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

MASK_ENDINGS = tuple(
    sign + word
    for word in ("mask", "masks", "seg", "segmentation", "label", "labels", "labelmap", "gt", "annotation", "lesion")
    for sign in ("_", "-", ".")
)
MaskNames = tuple[Sequence[str], str]  # paths without suffix by which a mask may call an image, and its suffix
_PREFERRED = (".png", ".tif", ".tiff", ".gz", ".nii", ".nrrd", ".mha")  # without loss, the usual first
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net: case_0000 is the first channel of the case that mask ``case`` belongs to


@dataclass
class MaskPairs:
    """Label maps found for images, and what is to be said of the others.

    Attributes:
        of: the mask's file, by the name that the image was looked up by.
        unmatched: files of masks that belong to no image.
        passed_over: ``(image, masks)``: files that could be an image's mask as well as the one it got.
        shared: ``(mask, images)`` where several images could be meant.
    """

    of: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    passed_over: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    shared: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def pair(images: Mapping[str, MaskNames], masks: Mapping[str, Sequence[str]]) -> MaskPairs:
    """Finds the mask of each image; of several the one with the image's own suffix, else as :data:`_PREFERRED` has it.

    Args:
        images: what a mask may call each image, by the image's key.
        masks: files by their path without suffix.
    """
    pairs = MaskPairs()
    users: dict[str, dict[str, str]] = {}
    touched: set[str] = set()
    for image, (names, suffix) in images.items():
        found = next((masks[name] for name in _candidates(names) if name in masks), ())
        touched.update(found)
        if found:
            ranked = sorted(found, key=lambda file: (not file.endswith(suffix), _preference(file), file))
            pairs.of[image] = ranked[0]
            if len(ranked) > 1:
                pairs.passed_over.append((image, tuple(ranked[1:])))
            users.setdefault(ranked[0], {}).setdefault(_CHANNEL.sub("", names[0]), image)
    pairs.shared = [(mask, tuple(cases.values())) for mask, cases in users.items() if len(cases) > 1]
    pairs.unmatched = sorted(file for files in masks.values() for file in files if file not in touched)
    return pairs


def _preference(file: str) -> int:
    suffix = PurePosixPath(file.lower()).suffix
    return _PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED)


def _candidates(names: Iterable[str]) -> Iterator[str]:
    """What the mask may be called: as the image, with an ending, or as nnU-Net has it; by path before by name alone."""
    for name in names:
        for place in dict.fromkeys((name, PurePosixPath(name).name)):
            yield place
            yield from (place + ending for ending in MASK_ENDINGS)
            case = _CHANNEL.sub("", place)
            if case != place:
                yield case
                yield from (case + ending for ending in MASK_ENDINGS)
