"""The work of ``dira-dist shard``: tars made in this process or in many, and what is told of it meanwhile.

Each tar is one piece of work, fixed beforehand by the plan and done whole by one process, so that neither the number of
processes nor an interruption can change a byte. A process holds one image, or volume, in memory and one tar in the
temporary folder.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, Protocol

from dira_dist.config import RequestError
from dira_dist.data.cores import usable_cores
from dira_dist.data.ingest.convert import Converter, Task, Told
from dira_dist.data.ingest.greys import mode_of_dicom
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.listing import one_file_of
from dira_dist.data.ingest.names import printable
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.parts import ItemNote, Part, ShardOutcome, SkippedItem
from dira_dist.data.ingest.pixels import PictureMode, mode_of
from dira_dist.data.ingest.plan import VOLUME_KINDS, Item, Plan, strict_refusal
from dira_dist.data.ingest.readers import UnreadableError, discreetly, read_pictures
from dira_dist.data.ingest.scales import series_to_settle, settle
from dira_dist.data.ingest.spool import whole
from dira_dist.data.ingest.tables import boxes_for
from dira_dist.data.shards import Sample, publish_shard
from dira_dist.data.store import StoreError, open_store

_PROBED_FILES = 32
_POLL_S = 0.2


class Progress(Protocol):
    """Called now and then while the work goes on."""

    def __call__(self, done: int, total: int) -> None:
        """Files done, of all files, those of an earlier run that went before included."""


@dataclass
class _Bench:
    """What a process works with; ``done`` and ``stopped`` reach over to the one that reports and commands."""

    converter: Converter
    strict: bool
    done: Callable[[], None]
    stopped: Callable[[], bool]


class _StoppedError(Exception):
    """The run was ended from outside while a tar was in the making."""


class _RefusedError(Exception):
    """A file could not be read, and the run is strict."""


@dataclass(frozen=True)
class _Job:
    """One tar to be made."""

    address: str
    name: str
    tasks: Sequence[Task]


def _make_shard(bench: _Bench, job: _Job) -> ShardOutcome:
    """Converts the files of one tar and publishes it; under ``strict`` nothing after the first unreadable file."""
    notes = _Notes()
    samples = _samples(bench, job.tasks, notes)
    try:
        record = publish_shard(open_store(job.address), job.name, samples)
    except _RefusedError:
        record = None
    return ShardOutcome(
        record=record,
        files=len(job.tasks),
        converted=notes.converted,
        skipped=tuple(notes.skipped),
        notes=tuple(notes.told),
    )


@dataclass
class _Notes:
    converted: int = 0
    skipped: list[SkippedItem] = field(default_factory=list)
    told: list[ItemNote] = field(default_factory=list)


def _samples(bench: _Bench, tasks: Sequence[Task], notes: _Notes) -> Iterator[Sample]:
    for task in tasks:
        if bench.stopped():
            raise _StoppedError
        told = Told()
        try:
            files = bench.converter.fetch(task)
            with discreetly():
                samples = whole(bench.converter.samples(task, files, told))
        except (RequestError, StoreError):  # the store is away, and the next file would fare no better
            raise
        except Exception as error:  # decoders raise whatever a damaged file drives them to
            file = error.file if isinstance(error, UnreadableError) else ""
            cause = type(error).__name__
            notes.skipped.append(SkippedItem(key=task.item.key, cause=cause, reason=_reason(error), file=file))
            if bench.strict:
                raise _RefusedError from error
        else:
            notes.converted += told.converted
            notes.told += [ItemNote(key=task.item.key, text=text) for text in told.notes]
            with samples:
                yield from samples
        bench.done()


def _reason(error: Exception) -> str:
    """Why a file was skipped. What others say may quote a header, so only the decoders' own failures are repeated."""
    if isinstance(error, UnreadableError):
        return printable(str(error))
    told = str(error).partition("\n")[0][:200] if isinstance(error, OSError | RuntimeError | SyntaxError) else ""
    return f"it cannot be read: {type(error).__name__}{': ' if told else ''}{told}"


def make_parts(plan: Plan, parts: Mapping[str, Part], progress: Progress | None) -> None:
    """Makes all tars that are missing, then the indexes.

    Raises:
        RequestError: a file is unreadable under ``strict``, or no file of a part can be read.
        StoreError: reading or writing failed for longer than patience lasts.
    """
    mode = _mode_of(plan)
    _settle_scales(plan, plan.options.processes or usable_cores())
    jobs = _jobs(plan, parts)
    total = plan.items
    before = sum(len(part.items) if part.index else part.files_done for part in parts.values())

    def tell(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    tell(0)
    shards = sum(1 for part in parts.values() for _ in part.open_shards())
    processes = min(plan.options.processes or usable_cores(), shards)
    run = _run_here if processes <= 1 else _run_in_processes
    for part, name, outcome in run(plan, mode, jobs, processes, tell):
        if plan.options.strict and outcome.skipped:
            raise strict_refusal(part.name_of(outcome.skipped[0].key), outcome.skipped[0].reason)
        part.note(name, outcome)
    for part in parts.values():
        if part.index is None:
            part.finish(mode)
    tell(total - before)


def _jobs(plan: Plan, parts: Mapping[str, Part]) -> Iterator[tuple[Part, _Job]]:
    """Made one by one as they are needed: tables and masks are looked up then, not held for every file."""
    for part in parts.values():
        for name, items in part.open_shards():
            yield part, _Job(part.address, name, [_task(plan, item) for item in items])


def _task(plan: Plan, item: Item) -> Task:
    return Task(
        item=item,
        labels=plan.labels_of(item),
        boxes=boxes_for(plan.boxes, item.files[0]) if plan.boxes else (),
        mask=plan.mask_of(item),
        group=plan.groups.get(item.key),
        scale=plan.scales.get(item.files[0]),
    )


_Results = Iterator[tuple[Part, str, ShardOutcome]]


def _run_here(
    plan: Plan, mode: PictureMode | None, jobs: Iterator[tuple[Part, _Job]], processes: int, tell: Callable[[int], None]
) -> _Results:
    """In this process, tar by tar."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tell(done)

    bench = _Bench(Converter(plan.source, plan.options, mode), plan.options.strict, count, lambda: False)
    for part, job in jobs:
        yield part, job.name, _make_shard(bench, job)


_bench: _Bench | None = None  # of a worker process, set once when it starts


def _start_worker(
    source: str, options: ShardOptions, mode: PictureMode | None, counter: "Synchronized[int]", stop: Event
) -> None:
    global _bench
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and stops its workers in good order

    def count() -> None:
        with counter.get_lock():
            counter.value += 1

    _bench = _Bench(Converter(source, options, mode), options.strict, count, stop.is_set)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_in_worker(job: _Job) -> ShardOutcome:
    assert _bench is not None, "the pool starts its workers with _start_worker"
    return _make_shard(_bench, job)


def _run_in_processes(
    plan: Plan, mode: PictureMode | None, jobs: Iterator[tuple[Part, _Job]], processes: int, tell: Callable[[int], None]
) -> _Results:
    """In fresh processes, two tars each under way or waiting; outcomes come in the order in which they are done."""
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    arguments = (plan.source, plan.options, mode, counter, stop)
    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        waiting: dict[Future[ShardOutcome], tuple[Part, str]] = {}
        try:
            while _fill(pool, jobs, waiting, 2 * processes):
                finished, _ = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                tell(counter.value)
                for future in finished:
                    part, name = waiting.pop(future)
                    yield part, name, future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _fill(
    pool: ProcessPoolExecutor,
    jobs: Iterator[tuple[Part, _Job]],
    waiting: dict[Future[ShardOutcome], tuple[Part, str]],
    most: int,
) -> bool:
    """Submits jobs until ``most`` are waiting; whether there is anything to wait for."""
    while len(waiting) < most and (following := next(jobs, None)) is not None:
        part, job = following
        waiting[pool.submit(_make_in_worker, job)] = (part, job.name)
    return bool(waiting)


# ------------------------------------------------------------------------ the mode


def _mode_of(plan: Plan) -> PictureMode | None:
    """The one mode of the set, none for volumes: as asked for, or the richest among a sample of the files.

    16 bits go before colour, as colour in a radiograph is a rendering; a set coded in JPEG has 8 bits.
    """
    if plan.content == "volumes":
        return None
    if plan.options.mode is not None:
        return plan.options.mode
    modes = {mode for item in _sample_of(plan) for mode in _modes_in(plan, item)}
    if "I;16" in modes and plan.options.coding == "png":
        return "I;16"
    return "RGB" if "RGB" in modes else "L"


def _sample_of(plan: Plan) -> list[Item]:
    """Random by the keys, and the same every time."""
    items = sorted((item for items in plan.parts.values() for item in items[:_PROBED_FILES]), key=lambda item: item.key)
    return items[:_PROBED_FILES]


def _modes_in(plan: Plan, item: Item) -> set[PictureMode]:
    if item.kind in VOLUME_KINDS:
        return {"I;16"}  # slices of volumes, whose values seldom are 8 bits deep
    store = open_store(plan.source)
    try:
        with one_file_of(store):
            data = store.read_bytes(item.files[0])
        with discreetly():
            if item.kind == "dicom":
                return {mode_of_dicom(data)}
            assert item.kind in ("raster", "tiff")
            return {mode_of(picture.pixels) for picture in read_pictures(data, item.kind, None)}
    except (RequestError, StoreError):
        raise
    except Exception:  # an unreadable file has no mode; it is reported when its turn comes
        return set()


# --------------------------------------------------------------- one scale for a series


def _settle_scales(plan: Plan, processes: int) -> None:
    """Finds one grey scale for the slices of each series, where the options leave it to the files."""
    if plan.content != "images":
        return
    rule = parse_intensity(plan.options.intensity)
    found = series_to_settle(plan.headers, rule)
    settling = partial(settle, plan.source, rule=rule)
    with _mapper(min(processes, len(found))) as over:
        for series, (scale, note) in zip(found, over(settling, found), strict=True):
            plan.scales.update(dict.fromkeys(series.files, scale))
            if note:
                plan.notes.append((series.files[0], note))


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """``map``, over so many fresh processes where they are more than one."""
    if processes <= 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_measuring) as pool:
        yield pool.map


def _start_measuring() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
