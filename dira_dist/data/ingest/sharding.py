"""``dira-dist shard``: an archive of images to shard sets, in parallel, resumable, the same bytes every time."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dira_dist.config import RequestError, Section
from dira_dist.data.ingest.appending import parts_to_append
from dira_dist.data.ingest.names import by_keys, printable
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.parts import Part
from dira_dist.data.ingest.plan import WHOLE, Plan
from dira_dist.data.ingest.planning import make_plan
from dira_dist.data.ingest.work import Progress, make_parts
from dira_dist.data.shards import INDEX_NAME
from dira_dist.data.store import StoreError, check_reachable, open_store

_MOST_LINES = 20  # of one kind on the console


class Skipped(Section):
    """A file that is not in the set."""

    file: str
    reason: str
    key: Annotated[str, Field(description="what stands for the name where names are not shown")] = ""


class Note(Section):
    """What is to be known of a file that is in the set."""

    file: str
    text: str
    key: Annotated[str, Field(description="what stands for the name where names are not shown")] = ""


class PartReport(Section):
    """One shard set as it stands."""

    address: str
    samples: int
    shards: int
    bytes: int
    digest: Annotated[str, Field(description="over the tars' SHA-256: equal sets, equal digests")]
    resumed_shards: Annotated[int, Field(description="tars that an earlier run had published")]
    was_complete: Annotated[bool, Field(description="the whole part was there already")]
    generation: Annotated[int, Field(description="of the set, from 1")] = 1


class ShardReport(Section):
    """What was read, skipped and why. It names files of the source: keep it where the source is."""

    source: str
    dest: str
    parts: dict[str, PartReport]
    files: Annotated[int, Field(description="image files, or series, in the plan")]
    skipped: tuple[Skipped, ...]
    ignored: Annotated[int, Field(description="files of the source that are not read")]
    ignored_files: Annotated[tuple[Skipped, ...], Field(description="these files, and why they are not read")] = ()
    unmatched: Annotated[
        dict[str, tuple[str, ...]], Field(default_factory=dict, description="masks, and rows by table, of no image")
    ]
    unlabelled: Annotated[int, Field(description="images without a row in the label table")]
    converted: Annotated[int, Field(description="files whose depth or colour the set's mode does not keep")]
    lost_colour: Annotated[int, Field(description="those of them that became grey")] = 0
    padded: Annotated[int, Field(description="volumes that are smaller than the cubes cut of them")] = 0
    mode: Annotated[str, Field(description="of the images, or volume")] = ""
    remarks: Annotated[tuple[str, ...], Field(description="what was chosen, and what it costs")] = ()
    names: Annotated[Literal["files", "keys"], Field(description="how files are called on the console")] = "files"
    warnings: tuple[str, ...]
    notes: Annotated[tuple[Note, ...], Field(description="what was guessed, corrected or contradicted, by file")] = ()
    grouped_by: Annotated[str, Field(description="what keeps samples in one part; empty: nothing")] = ""
    files_now: Annotated[int, Field(description="files converted by this run, not by an earlier one")]
    elapsed_s: float

    @property
    def samples(self) -> int:
        """Samples in all parts."""
        return sum(part.samples for part in self.parts.values())

    @property
    def files_per_s(self) -> float:
        """Rate of this run."""
        return self.files_now / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def lines(self) -> Iterator[str]:
        """The summary for a person."""
        for name, part in self.parts.items():
            state = ", nothing to do: it was complete" if part.was_complete else ""
            size = f"{part.bytes / 1e6:.1f} MB"
            label = "" if name == WHOLE else f"{name}: "
            grown = f", generation {part.generation}" if part.generation > 1 else ""
            yield f"{label}{part.samples} samples in {part.shards} shards, {size}, at {part.address}{grown}{state}"
        if self.files_now:
            yield f"{self.files_now} files in {self.elapsed_s:.1f} s, {self.files_per_s:.0f} files/s"
        for line in (*self.remarks, *self._losses()):
            yield line
        for line in self.warnings:
            yield f"warning: {line}"
        if self.grouped_by:
            yield f"grouped by {self.grouped_by}: no group lies in two parts"
        if self.unlabelled:
            yield f"{self.unlabelled} images have no labels"
        yield from self._few(f"note on {self._called(note)}: {note.text}" for note in self.notes)
        yield from self._few(self._skipped_lines())
        yield from self._ignored_lines()

    def _called(self, entry: Skipped | Note) -> str:
        return entry.file if self.names == "files" else entry.key

    def _losses(self) -> Iterator[str]:
        if self.lost_colour:
            yield f"{self.lost_colour} of {self.files} files in colour became grey; --mode RGB keeps colour"
        if self.converted > self.lost_colour:
            yield f"{self.converted - self.lost_colour} of {self.files} files lost depth: their 16 bits became 8"
        if self.padded:
            yield f"{self.padded} of {self.files} volumes are smaller than the cube and padded; --strict refuses them"

    @staticmethod
    def _few(lines: Iterable[str]) -> Iterator[str]:
        """The first of many lines of a kind, and how many the others are."""
        rest = iter(lines)
        yield from islice(rest, _MOST_LINES)
        more = sum(1 for _ in rest)
        if more:
            yield f"and {more} more like these; the JSON report (--report) has them all"

    def _skipped_lines(self) -> Iterator[str]:
        """Of each reason one line: a series that is refused has as many files as slices."""
        reasons: dict[str, list[Skipped]] = defaultdict(list)
        for entry in self.skipped:
            reasons[entry.reason].append(entry)
        for reason, entries in reasons.items():
            more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
            yield f"skipped {', '.join(map(self._called, entries[:3]))}{more}: {reason}"

    def _ignored_lines(self) -> Iterator[str]:
        """Of each reason how many files, and the first of them."""
        if not self.ignored_files:
            return
        yield f"{self.ignored} files of the source were ignored:"
        reasons: dict[str, list[Skipped]] = defaultdict(list)
        for entry in self.ignored_files:
            reasons[entry.reason].append(entry)
        for reason, entries in sorted(reasons.items()):
            shown = ", ".join(map(self._called, entries[:3])) + (", ..." if len(entries) > 3 else "")
            yield f"  {len(entries)} ({shown}): each {reason}"


def shard(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: ShardOptions | None = None,
    progress: Progress | None = None,
) -> ShardReport:
    """Makes the shard set of an archive, or with a split one set for each part at ``dest/<part>``.

    An interrupted call is taken up by the next equal one; a finished one has nothing left to do.

    Args:
        source: folder or ``s3://bucket/prefix`` of image files.
        dest: where the sets go, local or S3.
        options: how; the defaults make an unlabelled, lossless set of grey images.
        progress: told of the progress.

    Raises:
        RequestError: source, tables and options do not fit, ``dest`` holds something else, or a file is unreadable
            under ``strict``; with the remedy.
        StoreError: source or destination failed for longer than retries last; the next call goes on from there.
    """
    started_s = time.monotonic()
    options = options or ShardOptions()
    source, dest = os.fspath(source), os.fspath(dest)
    if options.report is not None and not Path(options.report).absolute().parent.is_dir():
        raise RequestError(f"report {options.report}: there is no such folder; make it first, or choose another place.")
    with discreet_storage(by_keys(options.names)):  # the plan lists the source and reads its headers, too
        return _shard(make_plan(source, options), dest, progress, started_s)


@contextmanager
def discreet_storage(keys: bool) -> Iterator[None]:
    """Trouble with storage names the object that it befell: not where names are not shown."""
    try:
        yield
    except StoreError as error:
        if not keys:
            raise
        cause = type(error.__cause__ or error).__name__
        raise StoreError(
            f"the source, a table or the destination failed ({cause}); the same command goes on from there"
        ) from None


def _shard(plan: Plan, dest: str, progress: Progress | None, started_s: float) -> ShardReport:
    options = plan.options
    check_reachable(dest, write=True)
    addresses = {name: f"{dest.rstrip('/')}/{name}" if options.split else dest for name in plan.parts}
    parts: Mapping[str, Part] = (
        parts_to_append(plan, addresses)
        if options.append
        else {name: Part(plan, name, address) for name, address in addresses.items()}
    )
    _check_layout(dest, parts)
    for part in parts.values():
        part.check_place(overwrite=options.overwrite)
    for part in parts.values():
        part.resume()
    files_before = sum(len(part.items) if part.index else part.files_done for part in parts.values())
    if any(part.index is None for part in parts.values()):
        make_parts(plan, parts, progress)
    report = _report(plan, parts, dest, plan.items - files_before, time.monotonic() - started_s)
    if options.report is not None:
        Path(options.report).write_text(report.model_dump_json(indent=1))
    return report


def _check_layout(dest: str, parts: Mapping[str, Part]) -> None:
    """A set beside, above or below those to be made would be taken for one of them."""
    root = open_store(dest)
    expected = {INDEX_NAME} if WHOLE in parts else {f"{name}/{INDEX_NAME}" for name in parts}
    found = (info.key for info in root.list() if info.key.rpartition("/")[2] == INDEX_NAME)
    strangers = sorted(set(found) - expected)
    if strangers:
        raise RequestError(
            f"{dest} already holds another shard set ({', '.join(strangers)}), which does not go with "
            f"{'a set without a split' if WHOLE in parts else 'the parts ' + ', '.join(parts)}. Choose another place."
        )


def _report(plan: Plan, parts: Mapping[str, Part], dest: str, files_now: int, elapsed_s: float) -> ShardReport:
    notes = [*plan.notes, *(pair for part in parts.values() for pair in part.notes())]
    skipped = [*plan.skipped, *(pair for part in parts.values() for pair in part.skipped())]
    return ShardReport(
        source=plan.source,
        dest=dest,
        parts={name: _part_report(part) for name, part in parts.items()},
        files=plan.items,
        skipped=_entries(plan, skipped),
        ignored=len(plan.ignored),
        ignored_files=_entries(plan, plan.ignored.items()),
        unmatched=plan.unmatched,
        unlabelled=plan.unlabelled,
        converted=sum(part.converted() for part in parts.values()),
        lost_colour=sum(part.lost_colour() for part in parts.values()),
        padded=sum(part.padded() for part in parts.values()),
        mode=next(part.index.image.mode for part in parts.values() if part.index),
        remarks=tuple(plan.remarks),
        names="keys" if plan.called.keys else "files",
        warnings=tuple(plan.warnings),
        notes=tuple(Note(file=printable(file), text=text, key=_key(plan, file)) for file, text in sorted(notes)),
        grouped_by=plan.grouped_by,
        files_now=files_now,
        elapsed_s=elapsed_s,
    )


def _entries(plan: Plan, found: Iterable[tuple[str, str]]) -> tuple[Skipped, ...]:
    return tuple(Skipped(file=printable(file), reason=reason, key=_key(plan, file)) for file, reason in sorted(found))


def _key(plan: Plan, file: str) -> str:
    return plan.salt.digest("sample", file)


def _part_report(part: Part) -> PartReport:
    assert part.index is not None, "the work is done"
    return PartReport(
        address=part.address,
        samples=part.index.samples,
        shards=len(part.index.shards),
        bytes=part.index.bytes,
        digest=part.index.digest,
        resumed_shards=part.resumed_shards,
        was_complete=part.was_complete,
        generation=part.index.number,
    )
