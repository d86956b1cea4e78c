"""The second pass over the volumes: the cubes of the words, tar by tar."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice

from dira_dist.data.ingest.cubes import Start
from dira_dist.data.ingest.grids import Sides
from dira_dist.data.lanes import ShardSet
from dira_dist.data.shards import PublishedShard, Sample, publish_index, publish_shard, shard_name
from dira_dist.data.store import open_store
from dira_dist.drawing import Picture
from dira_dist.vocabulary.destination import Word
from dira_dist.vocabulary.places import key_number, other_size, place_of, start_at
from dira_dist.vocabulary.plan import WordsPlan
from dira_dist.vocabulary.sheet import COLUMNS, ROWS, Slices, contact_sheet, middle_slices
from dira_dist.vocabulary.volumes import StoredVolume, cut, read_volumes, sample_of

LABEL = "word"
_TARS, _MOST_VOLUMES_PER_TAR = 64, 128


@dataclass
class Cutter:
    """Cuts the words' cubes of one part after another.

    Attributes:
        plan: of the work.
        words: as they were found.
        read: called after each volume.
        shown: slices of the cubes of the first part, by word and place among its nearest.
    """

    plan: WordsPlan
    words: Sequence[Word]
    read: Callable[[], object]
    shown: dict[tuple[int, int], Slices] = field(default_factory=dict)

    def publish(self, part: str) -> list[PublishedShard]:
        """The tars of a part, with the cubes of some volumes each, in the order of the volumes."""
        plan, store = self.plan, open_store(self.plan.address_of(part))
        of_volume: dict[str, list[Word]] = defaultdict(list)
        for word in self.words:
            for key in word.nearest[part]:
                of_volume[key].append(word)
        used = [each for each in plan.ids[part] if plan.table.keys[each] in of_volume]
        size = min(_MOST_VOLUMES_PER_TAR, -(-len(used) // _TARS))
        volumes = read_volumes(ShardSet(plan.volumes, plan.index), used)
        published = []
        for number in range(-(-len(used) // size)):
            some = islice(volumes, size)
            samples = (each for volume in some for each in self._samples(volume, of_volume[volume.key], part))
            published.append(publish_shard(store, shard_name(number), samples))
        return [each for each in published if each is not None]

    def publish_index(self, part: str, published: Sequence[PublishedShard]) -> None:
        """The last act of making a part."""
        publish_index(
            open_store(self.plan.address_of(part)),
            published,
            mode="volume",
            encoding="npy",
            labels=(LABEL,),
            classes={LABEL: tuple(map(str, range(len(self.words))))},
            made_by={
                "tool": "dira_dist",
                "version": version("dira-dist"),
                "request": self.plan.request | {"part": part},
            },
        )

    def sheet(self) -> Picture:
        """The words to look at, when their cubes are cut."""
        columns = range(1 + max(column for _, column in self.shown))
        words = self.words[:ROWS]
        rows = [[self.shown[word.number, column] for column in columns] for word in words]
        return contact_sheet(rows, [word.place_xyz for word in words])

    def _samples(self, volume: StoredVolume, words: Sequence[Word], part: str) -> Iterator[Sample]:
        for word in words:
            for number, (start, sides) in enumerate(self._cubes(word, volume, part)):
                cube = cut(volume, start, sides, self.plan.cube)
                column = word.nearest[part].index(volume.key)
                if part == self.plan.first and number == 0 and column < COLUMNS and word.number < ROWS:
                    self.shown[word.number, column] = middle_slices(cube[0].voxels)
                own = {
                    "labels": {LABEL: str(word.number)},
                    "split_group": volume.metadata.get("split_group") or volume.key,
                    "volume": volume.key,
                    "place_xyz": list(place_of(start, volume.sides, sides)),
                }
                yield sample_of(volume, cube, f"{volume.key}-{word.number:05d}-{number:02d}", own)
        self.read()

    def _cubes(self, word: Word, volume: StoredVolume, part: str) -> Iterator[tuple[Start, Sides]]:
        """Starts and sides: the word's own, and of the first part others about it."""
        options, cube = self.plan.options, self.plan.cube
        start = start_at(word.place_xyz, volume.sides, cube)
        yield start, cube
        for number in range(1, options.sizes if part == self.plan.first else 1):
            draw = (options.seed, word.number, key_number(volume.key), number)
            yield other_size(start, cube, volume.sides, options.scale, options.shift, draw)
