"""The work of ``dira-dist shard``: tars made in this process or in many, and what is told of it meanwhile.

Each tar is one piece of work, fixed beforehand by the plan and done whole by one process, so that neither the number of
processes nor an interruption can change a byte. A process holds one image, or volume, in memory and one tar in the
temporary folder.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Protocol

from dira_dist.config import RequestError
from dira_dist.data.cores import usable_cores
from dira_dist.data.ingest.convert import Converter, Task
from dira_dist.data.ingest.intensity import Mapping as Greying
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.making import Bench, ShardJob, make_shard
from dira_dist.data.ingest.matching import named_in
from dira_dist.data.ingest.parts import Part, ShardOutcome
from dira_dist.data.ingest.plan import Plan, strict_refusal
from dira_dist.data.ingest.scales import Series, series_to_settle, settle
from dira_dist.data.ingest.survey import raster_rules, survey
from dira_dist.data.ingest.tables import boxes_for
from dira_dist.data.ingest.workers import MakeConverter, Workers, end_with_parent


class Progress(Protocol):
    """Called now and then while the work goes on."""

    def __call__(self, done: int, total: int) -> None:
        """Files done, of all files, those of an earlier run that went before included."""


def make_parts(plan: Plan, parts: Mapping[str, Part], progress: Progress | None) -> None:
    """Makes all tars that are missing, then the indexes.

    Raises:
        RequestError: a file is unreadable under ``strict``, or no file of a part can be read.
        StoreError: reading or writing failed for longer than the retry policy allows.
    """
    found = survey(plan)
    if plan.options.append and found.signed_range is not None:
        raise RequestError(
            "append: TIFF files of signed numbers take their greys from the smallest and largest value of all files of "
            "a set, which new files may change; make the set anew with --intensity range:LOW,HIGH, and then add to it."
        )
    if found.remark:
        plan.remarks.append(found.remark)
    settle_scales(plan, plan.options.processes or usable_cores())
    rules = raster_rules(plan, found.signed_range, plan.options.image_size)
    make_converter = partial(Converter, plan.source, plan.options, found.mode, rules)
    before = sum(len(part.items) if part.index else part.files_done for part in parts.values())

    def tell(done: int) -> None:
        if progress is not None:
            progress(before + done, plan.items)

    tell(0)
    shards = sum(1 for part in parts.values() for _ in part.open_shards())
    processes = min(plan.options.processes or usable_cores(), shards)
    run = _run_here if plan.options.processes == 1 else partial(_run_in_processes, processes)
    for part, name, outcome in run(make_converter, plan.options.strict, _jobs(plan, parts), tell):
        if plan.options.strict and outcome.skipped:
            first = outcome.skipped[0]
            raise strict_refusal(plan.called(part.file_of(first.key)), first.reason)
        part.note(name, outcome)
    for part in parts.values():
        if part.index is None:
            part.finish(found.mode)
    tell(plan.items - before)


_Jobs = Iterator[tuple[Part, ShardJob]]
_Results = Iterator[tuple[Part, str, ShardOutcome]]


def _jobs(plan: Plan, parts: Mapping[str, Part]) -> _Jobs:
    """Made one by one as they are needed: tables and masks are looked up then, not held for every file."""
    for part in parts.values():
        for name, items in part.open_shards():
            yield part, ShardJob(part.address, name, [_task(plan, item) for item in items])


def _task(plan: Plan, item: Item) -> Task:
    return Task(
        item=item,
        labels=plan.labels_of(item),
        columns=plan.columns_of(item),
        boxes=boxes_for(plan.boxes, named_in(plan.boxes, item)) if plan.boxes else (),
        mask=plan.mask_of(item),
        group=plan.groups.get(item.key),
        scale=plan.scales.get(item.files[0]),
        centres=plan.centres_of(item),
    )


def _run_here(make_converter: MakeConverter, strict: bool, jobs: _Jobs, tell: Callable[[int], None]) -> _Results:
    """In this process, tar by tar; nothing stands between a file that ends its process and the run."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tell(done)

    bench = Bench(make_converter(), strict, lambda position: None, count, lambda: False)
    for part, job in jobs:
        yield part, job.name, make_shard(bench, job)


def _run_in_processes(
    processes: int, make_converter: MakeConverter, strict: bool, jobs: _Jobs, tell: Callable[[int], None]
) -> _Results:
    """In fresh processes, one tar each under way; outcomes come in the order in which they are done."""
    under_way: dict[int, tuple[Part, str]] = {}

    def noted() -> Iterator[ShardJob]:
        for number, (part, job) in enumerate(jobs):
            under_way[number] = (part, job.name)
            yield job

    for number, outcome in Workers(processes, make_converter, strict=strict, tell=tell).run(noted()):
        yield *under_way.pop(number), outcome


# --------------------------------------------------------------- one scale for a series


def settle_scales(plan: Plan, processes: int) -> None:
    """Finds one grey scale for the slices of each series, where the options leave it to the files."""
    if plan.content != "images":
        return
    rule = parse_intensity(plan.options.intensity)
    found = series_to_settle(plan.headers, rule)
    settling = partial(settle, plan.source, rule=rule)
    outcomes = map(settling, found) if processes <= 1 else _settled_in_processes(settling, found, processes)
    for series, (scale, note) in zip(found, outcomes, strict=True):
        if scale is not None:
            plan.scales.update(dict.fromkeys(series.files, scale))
        if note:
            plan.notes.append((series.files[0], note))


_Settled = tuple[Greying | None, str]
_NO_SCALE = (
    "the process that measured the grey scale of its series was ended, as the kernel does when memory runs out or a "
    "decoder crashes: each file of the series has a scale of its own"
)


def _settled_in_processes(
    settling: Callable[[Series], _Settled], found: Sequence[Series], processes: int
) -> list[_Settled]:
    """Outcomes in the order of the series, also where one of them ends the process that measures it."""
    outcomes: list[_Settled] = []
    if found:
        with suppress(BrokenProcessPool), _pool(min(processes, len(found))) as pool:
            outcomes.extend(pool.map(settling, found))
    while len(outcomes) < len(found):  # a broken pool does not say which it was: the others go one by one
        with _pool(1) as pool:
            for series in found[len(outcomes) :]:
                try:
                    outcomes.append(pool.submit(settling, series).result())
                except BrokenProcessPool:
                    outcomes.append((None, _NO_SCALE))
                    break  # on to a fresh pool
    return outcomes


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_measuring)


def _start_measuring() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
