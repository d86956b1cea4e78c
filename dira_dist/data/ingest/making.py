"""One tar of a set: its files converted one after another, what cannot be read left out by name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from dira_dist.config import RequestError
from dira_dist.data.ingest.convert import Converter, ItemFindings, Task
from dira_dist.data.ingest.failures import UnreadableError, reason_of
from dira_dist.data.ingest.parts import ItemNote, ShardOutcome, SkippedItem
from dira_dist.data.ingest.readers import quiet_decoders
from dira_dist.data.ingest.spool import whole
from dira_dist.data.shards import Sample, publish_shard
from dira_dist.data.store import StoreError, open_store


@dataclass(frozen=True)
class ShardJob:
    """One tar to be made.

    Attributes:
        address, name: of the set and the tar.
        tasks: its files, in order.
        lost: reasons why tasks are left out unread, by position: they ended the process that read them.
    """

    address: str
    name: str
    tasks: Sequence[Task]
    lost: dict[int, str] = field(default_factory=dict)

    def without(self, position: int, reason: str) -> "ShardJob":
        """The same job, the task at ``position`` left out."""
        return replace(self, lost={**self.lost, position: reason})


@dataclass
class Bench:
    """What a process works with.

    Attributes:
        converter: of files.
        strict: whether to stop at the first unreadable file.
        at: told the position of the task that is begun.
        done: called after each file.
        stopped: whether the run was ended from outside.
    """

    converter: Converter
    strict: bool
    at: Callable[[int], None]
    done: Callable[[], None]
    stopped: Callable[[], bool]


class StoppedError(Exception):
    """The run was ended from outside while a tar was in the making."""


class _RefusedError(Exception):
    """A file could not be read, and the run is strict."""


@dataclass
class _Notes:
    converted: int = 0
    lost_colour: int = 0
    padded: int = 0
    skipped: list[SkippedItem] = field(default_factory=list)
    notes: list[ItemNote] = field(default_factory=list)


def make_shard(bench: Bench, job: ShardJob) -> ShardOutcome:
    """Converts the files of one tar and publishes it; under ``strict`` nothing after the first unreadable file.

    Raises:
        StoppedError: the run was ended from outside.
        RequestError, StoreError: the source or the destination is away.
    """
    notes = _Notes()
    try:
        with quiet_decoders():
            record = publish_shard(open_store(job.address), job.name, _samples(bench, job, notes))
    except _RefusedError:
        record = None
    return ShardOutcome(
        record=record,
        files=len(job.tasks),
        converted=notes.converted,
        lost_colour=notes.lost_colour,
        padded=notes.padded,
        skipped=tuple(notes.skipped),
        notes=tuple(notes.notes),
    )


def _samples(bench: Bench, job: ShardJob, notes: _Notes) -> Iterator[Sample]:
    for position, task in enumerate(job.tasks):
        if bench.stopped():
            raise StoppedError
        findings = ItemFindings()
        try:
            if position in job.lost:
                raise UnreadableError(job.lost[position])
            bench.at(position)
            files = bench.converter.fetch(task)
            samples = whole(bench.converter.samples(task, files, findings))
        except (RequestError, StoreError):  # the store is away, and the next file would fare no better
            raise
        except Exception as error:  # decoders raise whatever a damaged file drives them to
            file = error.file if isinstance(error, UnreadableError) else ""
            cause, reason = type(error).__name__, reason_of(error)
            notes.skipped.append(SkippedItem(key=task.item.key, cause=cause, reason=reason, file=file))
            if bench.strict:
                raise _RefusedError from error
        else:
            notes.converted += findings.converted
            notes.lost_colour += findings.lost_colour
            notes.padded += findings.padded
            notes.notes += [ItemNote(key=task.item.key, text=text) for text in findings.notes]
            with samples:
                yield from samples
        bench.done()
