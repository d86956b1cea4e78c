"""Who is in which part, in whom words are found, and what decides what the sets are: known before anything is read."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.ingest.grids import Sides
from dira_dist.data.ingest.options import check_split
from dira_dist.data.ingest.plan import WHOLE
from dira_dist.data.ingest.salt import Salt, part_of
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.splitmix import Drawn, drawn
from dira_dist.prediction.model import Model
from dira_dist.training.trained_on import fed_by
from dira_dist.vocabulary.options import WordsOptions
from dira_dist.vocabulary.places import patients_per_word, references_of


@dataclass(frozen=True)
class WordsPlan:
    """The work.

    Attributes:
        volumes: address of the set of whole volumes.
        index: of it.
        dest: where the sets go.
        model: whose encoder gives the features.
        options: of the words.
    """

    volumes: str
    index: ShardSetIndex
    dest: str
    model: Model
    options: WordsOptions

    @property
    def cube(self) -> Sides:
        """(D, H, W)."""
        x, y, z = self.options.cube
        return z, y, x

    @cached_property
    def table(self) -> SampleTable:
        """The volumes, by id."""
        return read_samples(self.volumes, self.index)

    @cached_property
    def ids(self) -> dict[str, list[int]]:
        """Of the volumes of each part, by the hash of their patient.

        Raises:
            RequestError: a part got nothing.
        """
        split = self.options.split or {WHOLE: 1.0}
        check_split(split)
        ids: dict[str, list[int]] = {part: [] for part in split}
        salt = Salt(str(self.options.seed).encode())  # no secret: the names of groups are salted already
        for number, group in enumerate(self.table.groups):
            ids[part_of(salt.fraction(group), split)].append(number)
        if empty := [part for part, found in ids.items() if not found]:
            raise RequestError(
                f"part {empty[0]!r} of the split got nothing: there are {len(set(self.table.groups))} patients in all, "
                "and the hash of each decides. Give the part a larger share or another --seed, or leave the split out."
            )
        return ids

    @property
    def first(self) -> str:
        """The part in whose patients words are found."""
        return next(iter(self.ids))

    @cached_property
    def patients(self) -> dict[str, list[str]]:
        """Of each part, sorted."""
        return {part: sorted({self.table.groups[each] for each in ids}) for part, ids in self.ids.items()}

    @cached_property
    def nearest(self) -> dict[str, int]:
        """Patients of each word, by part.

        Raises:
            RequestError: there are too few.
        """
        return patients_per_word(self.options.nearest, {part: len(known) for part, known in self.patients.items()})

    @cached_property
    def references(self) -> list[list[int]]:
        """Of each word the volumes that it is looked for in, one of a patient."""
        seed = self.options.seed
        of_patient: dict[str, list[int]] = defaultdict(list)
        for each in sorted(self.ids[self.first], key=lambda each: self.table.keys[each]):
            of_patient[self.table.groups[each]].append(each)
        words = (references_of(word, self.patients[self.first], seed) for word in range(self.options.words))
        own = ((word, [of_patient[patient] for patient in patients]) for word, patients in enumerate(words))
        return [[each[drawn(len(each), seed, Drawn.WORD_VOLUME, word)] for each in volumes] for word, volumes in own]

    @cached_property
    def request(self) -> dict[str, Any]:
        """All that decides what the sets are; JSON-ready, and free of names."""
        own = self.options.model_dump(mode="json", exclude={"device"})
        made = {name: value for name, value in fed_by(self.index).items() if name not in ("mode", "array_type")}
        return made | {"content": "cubes"} | own | {"volumes": self.index.digest, "encoder": self.model.digest}

    def address_of(self, part: str) -> str:
        """Of a part's set."""
        return f"{self.dest.rstrip('/')}/{part}" if self.options.split else self.dest
