"""``dira-dist lineage``: which sets, and which generations of them, a model has learned from; and who is gone since."""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dira_dist.config import RequestError, parse_document, without_credentials
from dira_dist.data.generations import at_generation, plain_address
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import StoreError, open_store
from dira_dist.models.model_files import FACTS
from dira_dist.registry.fetch import fetch
from dira_dist.runs.run import read_run
from dira_dist.tracking.config import TrackingConfig, tracking_at

_JOB, _GROUPS = "job.yaml", "groups.json"


@dataclass(frozen=True)
class SeenSet:
    """A training set as a model has seen it.

    Attributes:
        model: that learned from it: the one that was asked for, or one that it started from.
        address: of the set.
        generation: of it.
        digest: of what it held then, hexadecimal; its beginning where no more was kept.
        samples_withdrawn: of it since; none where the set cannot be asked any more.
        groups_withdrawn: of those whom the model remembers by name of a digest; none where it remembers nobody.
        problem: why the set cannot be asked.
    """

    model: str
    address: str
    generation: int
    digest: str
    samples_withdrawn: int | None = None
    groups_withdrawn: int | None = None
    problem: str = ""

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        place = without_credentials(self.address)
        yield f"{self.model}: {place}, generation {self.generation}, digest {self.digest[:12] or 'not known'}"
        if self.problem:
            yield f"  what became of it is not known: {self.problem}"
        elif not self.samples_withdrawn:
            yield "  nothing of it was withdrawn since"
        else:
            whom = (
                f" (of {self.groups_withdrawn} groups that it remembers)" if self.groups_withdrawn is not None else ""
            )
            yield f"  it has seen {self.samples_withdrawn} samples that were withdrawn since{whom}"


@dataclass(frozen=True)
class Lineage:
    """The sets of a model, then those of what it started from, and so on.

    Attributes:
        seen: the sets.
        notes: what could not be followed.
    """

    seen: tuple[SeenSet, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        for each in self.seen:
            yield from each.lines()
        yield from self.notes


def lineage(model: str, *, tracking_uri: str | None = None) -> Lineage:
    """What a model has learned from, and what it started from has, as far as the sets and models can be asked.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/ID``, a model's folder, or a run's folder.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.

    Raises:
        RequestError: there is no such model, or it does not say what it was trained on.
    """
    config = tracking_at(tracking_uri)
    seen, notes, known = [], [], set[str]()
    following = model
    while following and following not in known:
        known.add(following)
        try:
            found, following = _seen_by(following, config)
            seen += found
        except (RequestError, StoreError) as error:
            if not seen:
                raise
            notes.append(f"{following}: what it has seen is not known: {error}")
            break
    return Lineage(tuple(seen), tuple(notes))


def _seen_by(model: str, config: TrackingConfig) -> tuple[list[SeenSet], str]:
    """The sets of one model, and what it started from; empty for what started from chance."""
    if model.startswith(("models:", "runs:")):
        with tempfile.TemporaryDirectory() as scratch:
            return _of_folder(model, fetch(model, Path(scratch), config, only=(FACTS, _JOB, _GROUPS)))
    if (Path(model) / FACTS).is_file():
        return _of_folder(model, Path(model))
    state = read_run(open_store(model))
    if state is None:
        raise RequestError(
            f"{model}: there is no model and no run; give models:/NAME@ALIAS, runs:/ID or a folder of one"
        )
    train, generation = state.job["data"]["train"], state.generations.get("train", 1)
    return [_looked_up(model, train, generation, state.digests.get("train", ""), None)], _start_of(state.job)


def _of_folder(model: str, folder: Path) -> tuple[list[SeenSet], str]:
    data = json.loads((folder / FACTS).read_bytes()).get("data", {})
    if "address" not in data:
        raise RequestError(f"{model}: its {FACTS} does not say what it was trained on; ask the folder of its run")
    job = parse_document((folder / _JOB).read_text(), model).values if (folder / _JOB).is_file() else {}
    groups = json.loads((folder / _GROUPS).read_bytes()) if (folder / _GROUPS).is_file() else {}
    seen = _looked_up(model, data["address"], data.get("generation", 1), data.get("digest", ""), groups.get("train"))
    return [seen], _start_of(job)


def _start_of(job: Mapping[str, Any]) -> str:
    """The model that a fine-tuning started from; of a file of weights nobody knows whose they were."""
    start = job.get("start") or {}
    address = start.get("pinned") or start.get("from") or "" if isinstance(start, Mapping) else ""
    return str(address) if str(address) != "random" else ""


def _looked_up(model: str, address: str, generation: int, digest: str, remembered: Collection[str] | None) -> SeenSet:
    place = plain_address(address)
    try:
        then, newest = read_index(at_generation(place, generation)), read_index(place)
    except (RequestError, StoreError) as error:
        return SeenSet(model, place, generation, digest, problem=str(error))
    if not digest or not then.digest.startswith(digest):
        problem = f"the set that lies there has another digest in generation {generation}: {then.digest[:12]}"
        return SeenSet(model, place, generation, digest, problem=problem)
    groups = None if remembered is None else len(_withdrawn_after(newest, generation) & set(remembered))
    return SeenSet(model, place, generation, digest, then.withdrawn_since, groups)


def _withdrawn_after(newest: ShardSetIndex, generation: int) -> set[str]:
    later = (each for each in newest.withdrawals or () if each.generation > generation)
    return {group for each in later for group in each.groups}
