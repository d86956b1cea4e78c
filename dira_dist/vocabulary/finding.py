"""The first pass over the volumes: their features, the places of the words, and the volumes nearest to each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.ingest.cubes import Start, filter_of
from dira_dist.data.ingest.grids import Sides
from dira_dist.data.lanes import ShardSet
from dira_dist.vocabulary.destination import Word
from dira_dist.vocabulary.places import Place, choose_apart, nearest_volumes, place_of, starts_tried
from dira_dist.vocabulary.plan import WordsPlan
from dira_dist.vocabulary.volumes import StoredVolume, features_of, read_volumes

Features = npt.NDArray[np.float32]
Places = list[Place]


def find_words(plan: WordsPlan, device: str, read: Callable[[], object]) -> list[Word]:
    """The words, with the volumes that they are cut of.

    Args:
        plan: of the work.
        device: where features are computed.
        read: called after each volume.

    Raises:
        RequestError: a volume cannot be read, lies nobody knows how, or a word has no place.
    """
    features, kept = _look(plan, device, read)
    tried = [
        [(reference, place) for reference in references for place in kept[word, reference]]
        for word, references in enumerate(plan.references)
    ]
    chosen = choose_apart([[place for _, place in spots] for spots in tried], plan.options.apart)
    return [_word(plan, word, *tried[word][number], features) for word, number in enumerate(chosen)]


def _look(plan: WordsPlan, device: str, read: Callable[[], object]) -> tuple[Features, dict[tuple[int, int], Places]]:
    """The features of all volumes; and, by word and volume that it is looked for in, the places that are kept."""
    features, kept, placed = [], dict[tuple[int, int], Places](), dict[bool, str]()
    plan.model.network.to(device)
    volumes = read_volumes(ShardSet(plan.volumes, plan.index), range(len(plan.table)))
    for number, volume in enumerate(volumes):
        placed.setdefault(volume.is_placed, volume.key)
        _check_common_place(plan.volumes, placed)
        features.append(features_of(volume, plan.model, device))
        words = [word for word, references in enumerate(plan.references) if number in references]
        kept |= {(word, number): places for word, places in zip(words, _kept_places(plan, volume, words), strict=True)}
        read()
    return np.stack(features), kept


def _check_common_place(address: str, placed: Mapping[bool, str]) -> None:
    """Raises:
    RequestError: of some volumes it is known how they lie in the patient, and of others not.
    """
    if len(placed) > 1:
        raise RequestError(
            f"{address}: volumes have no common place: of {placed[True]} it is known how it lies in the patient, of "
            f"{placed[False]} not (affine_ras_mm), so that its axes may be others. Make a set of those with whole "
            "headers; the report of dira-dist shard names the others"
        )


def _kept_places(plan: WordsPlan, volume: StoredVolume, words: Sequence[int]) -> Iterator[Places]:
    if not words:
        return  # no reference: its values in their own unit would be computed in vain
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


def _word(plan: WordsPlan, number: int, reference: int, place: Place, features: Features) -> Word:
    keys = plan.table.keys
    nearest = {
        part: nearest_volumes(features, reference, plan.table.groups, ids, plan.nearest[part])
        for part, ids in plan.ids.items()
    }
    return Word(number, place, keys[reference], {part: [keys[each] for each in ids] for part, ids in nearest.items()})
