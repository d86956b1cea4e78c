"""``dira-dist shard``: an archive of images to shard sets, in parallel, resumable, the same bytes every time."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dira_dist.config import RequestError, Section
from dira_dist.data.ingest.names import printable
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.parts import Part
from dira_dist.data.ingest.plan import WHOLE, Plan, make_plan
from dira_dist.data.ingest.work import Progress, make_parts
from dira_dist.data.shards import INDEX_NAME
from dira_dist.data.store import check_reachable, open_store

_MOST_LINES = 20  # of one kind on the console


class Skipped(Section):
    """A file that is not in the set."""

    file: str
    reason: str


class Note(Section):
    """What is to be known of a file that is in the set."""

    file: str
    text: str


class PartReport(Section):
    """One shard set as it stands."""

    address: str
    samples: int
    shards: int
    bytes: int
    digest: Annotated[str, Field(description="over the tars' SHA-256: equal sets, equal digests")]
    resumed_shards: Annotated[int, Field(description="tars that an earlier run had published")]
    was_complete: Annotated[bool, Field(description="the whole part was there already")]


class ShardReport(Section):
    """What was read, skipped and why. It names files of the source: keep it where the source is."""

    source: str
    dest: str
    parts: dict[str, PartReport]
    files: Annotated[int, Field(description="image files, or series, in the plan")]
    skipped: tuple[Skipped, ...]
    ignored: Annotated[int, Field(description="files of the source that are no images")]
    unlabelled: Annotated[int, Field(description="images without a row in the label table")]
    converted: Annotated[int, Field(description="files whose depth or colour the set's mode does not keep")]
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
            yield f"{label}{part.samples} samples in {part.shards} shards, {size}, at {part.address}{state}"
        if self.files_now:
            yield f"{self.files_now} files in {self.elapsed_s:.1f} s, {self.files_per_s:.0f} files/s"
        for line in self.warnings:
            yield f"warning: {line}"
        if self.grouped_by:
            yield f"grouped by {self.grouped_by}: no group lies in two parts"
        for note in self.notes[:_MOST_LINES]:
            yield f"note on {note.file}: {note.text}"
        if len(self.notes) > _MOST_LINES:
            yield f"notes on {len(self.notes) - _MOST_LINES} more; the JSON report has them all"
        if self.unlabelled:
            yield f"{self.unlabelled} images have no labels"
        for skipped in self.skipped[:20]:
            yield f"skipped {skipped.file}: {skipped.reason}"
        if len(self.skipped) > 20:
            yield f"skipped {len(self.skipped) - 20} more; the JSON report names them all"


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
        StoreError: source or destination failed for longer than patience lasts; the next call goes on from there.
    """
    started_s = time.monotonic()
    options = options or ShardOptions()
    source, dest = os.fspath(source), os.fspath(dest)
    plan = make_plan(source, options)
    check_reachable(dest, write=True)
    parts = {name: Part(plan, name, f"{dest.rstrip('/')}/{name}" if options.split else dest) for name in plan.parts}
    _check_layout(dest, parts)
    for part in parts.values():
        part.check_place(overwrite=options.overwrite)
    for part in parts.values():
        part.take_up()
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
        skipped=tuple(Skipped(file=printable(file), reason=reason) for file, reason in sorted(skipped)),
        ignored=plan.ignored,
        unlabelled=plan.unlabelled,
        converted=sum(part.converted() for part in parts.values()),
        warnings=tuple(plan.warnings),
        notes=tuple(Note(file=printable(file), text=text) for file, text in sorted(notes)),
        grouped_by=plan.grouped_by,
        files_now=files_now,
        elapsed_s=elapsed_s,
    )


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
    )
