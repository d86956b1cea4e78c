"""The first pass over the volumes: their features, the places of the words, and the volumes nearest to each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.data.ingest.cubes import Start, filter_of
from dira_dist.data.ingest.grids import Sides
from dira_dist.data.lanes import ShardSet
from dira_dist.prediction.work import device_of
from dira_dist.vocabulary.destination import Word
from dira_dist.vocabulary.places import Place, nearest_volumes, place_of, places_apart, starts_tried
from dira_dist.vocabulary.plan import WordsPlan
from dira_dist.vocabulary.volumes import StoredVolume, features_of, read_volumes

Features = npt.NDArray[np.float32]


def find_words(plan: WordsPlan, read: Callable[[], object]) -> list[Word]:
    """The words, with the volumes that they are cut of.

    Args:
        plan: of the work.
        read: called after each volume.

    Raises:
        RequestError: a volume cannot be read, or a word has no place.
    """
    features, tried = _look(plan, read)
    places = places_apart(tried, plan.options.apart)
    return [_word(plan, number, place, features) for number, place in enumerate(places)]


def _look(plan: WordsPlan, read: Callable[[], object]) -> tuple[Features, list[list[Place]]]:
    """The features of all volumes, and of each word the places in its reference whose content is kept."""
    features, places = [], [list[Place]() for _ in plan.references]
    device = device_of(plan.options.device)
    plan.model.network.to(device)
    volumes = read_volumes(ShardSet(plan.volumes, plan.index), range(len(plan.table)))
    for number, volume in enumerate(volumes):
        features.append(features_of(volume, plan.model, device))
        found_here = [word for word, reference in enumerate(plan.references) if reference == number]
        for word, kept in zip(found_here, _kept_places(plan, volume, found_here), strict=True):
            places[word] = kept
        read()
    return np.stack(features), places


def _kept_places(plan: WordsPlan, volume: StoredVolume, words: Sequence[int]) -> Iterator[list[Place]]:
    if not words:
        return  # no reference, and its values in their own unit would be computed in vain
    options, cube, voxels = plan.options, plan.cube, volume.channels[0].voxels
    keeps = filter_of(volume.in_own_unit(), cube, options.content_filter)
    for word in words:
        tried = starts_tried(word, volume.sides, cube, options.margin[::-1], options.seed)
        starts = (start for start in dict.fromkeys(tried) if _holds_something(voxels, start, cube))
        yield [place_of(start, volume.sides, cube) for start in starts if keeps(start)]


def _holds_something(voxels: npt.NDArray[Any], start: Start, cube: Sides) -> bool:
    """Whether a cube holds more than one value."""
    part = voxels[tuple(slice(max(0, first), first + side) for first, side in zip(start, cube, strict=True))]
    return bool(part.min() < part.max())


def _word(plan: WordsPlan, number: int, place: Place, features: Features) -> Word:
    reference, keys = plan.references[number], plan.table.keys
    nearest = {
        part: nearest_volumes(features, reference, plan.table.groups, ids, plan.nearest[part])
        for part, ids in plan.ids.items()
    }
    return Word(number, place, keys[reference], {part: [keys[each] for each in ids] for part, ids in nearest.items()})
