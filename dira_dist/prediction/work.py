"""The work on entries: chunk after chunk, in this process or in several, each chunk's rows a part of its own.

A chunk is fixed beforehand and done whole by one process, in batches that do not reach beyond it, and one thread
computes on a CPU: neither the number of processes nor an interruption can change a byte.
"""

import multiprocessing
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.cores import usable_cores
from dira_dist.data.ingest.workers import end_with_parent
from dira_dist.data.store import Store, open_store
from dira_dist.prediction.answers import Answers, Collector, Row
from dira_dist.prediction.files import is_volume
from dira_dist.prediction.inputs import Entry, Opened, Reader, View
from dira_dist.prediction.model import Model
from dira_dist.prediction.place import full_disk_in_a_sentence
from dira_dist.prediction.tables import part_key, write_part

if TYPE_CHECKING:
    import pyarrow as pa

Chunk = tuple[int, Sequence[Entry]]
"""Its number, and what is in it."""
Tell = Callable[[int], None]
"""Told how many entries are done since it was told before."""

_CHUNK = 64
_NO_SLICE = "each of its slices holds one value only"


def chunks(entries: Sequence[Entry]) -> Iterator[Chunk]:
    """Neighbours together, a volume by itself."""
    number, held = 0, list[Entry]()
    for entry in entries:
        if held and (is_volume(entry) or is_volume(held[-1]) or len(held) == _CHUNK):
            yield number, tuple(held)
            number, held = number + 1, []
        held.append(entry)
    yield number, tuple(held)


@dataclass(frozen=True)
class Work:
    """All that a process needs; goes there as it is.

    Attributes:
        model: whose network answers.
        reader: opens entries.
        answers: what is made of its outputs.
        dest: address of the results.
        first_column: ``file`` or ``key``.
        schema: of the rows.
        batch: views at once.
        device: where it computes.
    """

    model: Model
    reader: Reader
    answers: Answers
    dest: str
    first_column: str
    schema: "pa.Schema"
    batch: int
    device: str

    def do(self, chunk: Chunk, tell: Tell) -> None:
        """Answers the entries of a chunk, and writes its part last.

        Raises:
            RequestError, StoreError: source or destination is away.
            JobFailedError: the disk is full.
        """
        number, entries = chunk
        store = open_store(self.dest)
        with full_disk_in_a_sentence(self.dest), _one_thread(self.device), torch.inference_mode():
            rows = [row for found in self._answered(entries, store, tell) for row in found]
            write_part(store, part_key(number), rows, self.schema)

    def _answered(self, entries: Sequence[Entry], store: Store, tell: Tell) -> Iterator[list[Row]]:
        """The rows of each entry, in order."""
        network = self.model.network.to(self.device)
        begun, batch = deque[_Begun](), list[tuple[_Begun, View]]()
        for opened in self.reader.open(entries):
            begun.append(one := _Begun(opened, self.answers.collector(opened, store)))
            for view in opened.views:
                one.waiting += 1
                batch.append((one, view))
                if len(batch) == self.batch:
                    self._compute(network, batch)
            one.ended = True
            yield from self._finished(begun, tell)
        self._compute(network, batch)
        yield from self._finished(begun, tell)

    def _compute(self, network: torch.nn.Module, batch: list[tuple["_Begun", View]]) -> None:
        """Answers the batch and empties it."""
        if batch:
            frames = torch.stack([view.frame for _, view in batch]).to(self.device)
            for (one, view), output in zip(batch, self.answers.outputs(network, frames), strict=True):
                one.collector.add(view, output)
                one.waiting -= 1
            batch.clear()

    def _finished(self, begun: deque["_Begun"], tell: Tell) -> Iterator[list[Row]]:
        while begun and begun[0].ended and not begun[0].waiting:
            yield self._rows(begun.popleft())
            tell(1)

    def _rows(self, one: "_Begun") -> list[Row]:
        opened, rows = one.opened, one.collector.rows()
        reason = opened.reason or ("" if rows else _NO_SLICE)
        own: Row = {self.first_column: opened.entry.name, "group": opened.entry.group, "note": "; ".join(opened.notes)}
        answered = [{**own, "reason": "", **row} for row in rows]
        return [*answered, {**own, "reason": reason}] if reason else answered


@dataclass
class _Begun:
    """An entry under way: its collector, how many of its views wait for their batch, whether all are read."""

    opened: Opened
    collector: Collector
    waiting: int = 0
    ended: bool = field(default=False)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """On a CPU sums depend on the number of threads in their last bits."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Runner(Protocol):
    """Does the chunks of a work, in whatever order."""

    def device(self, asked: str | None) -> str:
        """Where its networks compute.

        Raises:
            RequestError: there is no such device.
        """

    def run(self, work: Work, todo: Sequence[Chunk], tell: Tell) -> None:
        """Does them all.

        Raises:
            RequestError, StoreError: source or destination is away, or a machine does not see it.
            JobFailedError: a process was ended from outside.
        """


@dataclass(frozen=True)
class Here:
    """This machine.

    Attributes:
        processes: that share the chunks; none: one per core on the CPU, one on a GPU.
    """

    processes: int | None = None

    def device(self, asked: str | None) -> str:
        return device_of(asked)

    def run(self, work: Work, todo: Sequence[Chunk], tell: Tell) -> None:
        usual = usable_cores() if work.device == "cpu" else 1
        processes = min(self.processes or usual, len(todo))
        if processes > 1:
            _run_in_processes(processes, work, todo, tell)
            return
        for chunk in todo:
            work.do(chunk, tell)


def _run_in_processes(processes: int, work: Work, todo: Sequence[Chunk], tell: Tell) -> None:
    """In fresh processes, a chunk each."""
    context = multiprocessing.get_context("spawn")
    packed = pickle.dumps(work)  # by value: tensors in shared memory would cost a file descriptor each
    pool = ProcessPoolExecutor(processes, context, _start, (packed,))
    try:
        under_way: dict[Future[None], int] = {pool.submit(_do, chunk): len(chunk[1]) for chunk in todo}
        for done in as_completed(under_way):
            done.result()
            tell(under_way[done])
    except BrokenProcessPool as error:
        raise JobFailedError(
            "a process ended while it worked, as the kernel does when memory runs out or a decoder crashes: give fewer "
            "--processes; the same command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work | None = None


def _start(packed: bytes) -> None:
    global _work
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too
    _work = pickle.loads(packed)


def _do(chunk: Chunk) -> None:
    assert _work is not None
    _work.do(chunk, lambda done: None)


def device_of(asked: str | None) -> str:
    """Where to compute.

    Raises:
        RequestError: there is no such device here.
    """
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(asked).type
    except RuntimeError as error:
        raise RequestError(f"device {asked!r}: allowed are cpu, cuda and cuda:NUMBER") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise RequestError(f"device {asked!r}: it is not here; allowed are cpu and, where torch finds a GPU, cuda")
    return asked
