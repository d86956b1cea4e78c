"""Processes that make tars. One that the kernel ends takes no run with it: its file is left out by name.

A pool of the standard library breaks as a whole when one of its processes dies, and does not say which it was. Here
each worker has a pipe and a shared number, which says at which file of its tar it is.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

from dira_dist.config import JobFailedError
from dira_dist.data.ingest.convert import Converter
from dira_dist.data.ingest.making import Bench, ShardJob, StoppedError, make_shard
from dira_dist.data.ingest.parts import ShardOutcome

_POLL_S = 0.2
_TRIES = 2  # of a file whose process is ended: the kernel may have chosen it for the memory of another
_MOST_DEATHS_AT_START = 3

MakeConverter = Callable[[], Converter]


@dataclass
class _Worker:
    """A process, the way to it, and what it does.

    Attributes:
        place: the position of the file that it reads, -1 before the first.
        job: the tar that it makes, with its number; none while it waits.
    """

    process: BaseProcess
    pipe: Connection
    place: "Synchronized[int]"
    job: tuple[int, ShardJob] | None = None


class Workers:
    """So many processes, each making one tar at a time.

    Args:
        processes: how many.
        make_converter: called in each of them; must be picklable.
        strict: whether a tar ends at its first unreadable file.
        tell: told how many files are done, now and then.
    """

    def __init__(
        self, processes: int, make_converter: MakeConverter, *, strict: bool, tell: Callable[[int], None]
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._counter, self._stop = self._context.Value("q", 0), self._context.Event()
        self._arguments = (make_converter, strict, self._counter, self._stop)
        self._processes, self._tell = processes, tell
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._deaths_at_start = 0

    def run(self, jobs: Iterator[ShardJob]) -> Iterator[tuple[int, ShardOutcome]]:
        """Numbers of jobs with what became of them, in the order in which they are done.

        Raises:
            JobFailedError: processes end before they read any file.
            Exception: what a job raised.
        """
        numbered = enumerate(jobs)
        workers: list[_Worker] = []
        try:
            while self._hand_out(numbered, workers):
                ready = wait([worker.pipe for worker in workers if worker.job], timeout=_POLL_S)
                self._tell(self._counter.value)
                for worker in [worker for worker in workers if worker.pipe in ready]:
                    yield from self._hear(worker, workers)
        finally:
            self._stop.set()
            for worker in workers:
                worker.pipe.close()
            for worker in workers:
                worker.process.join()

    def _hand_out(self, jobs: Iterator[tuple[int, ShardJob]], workers: list[_Worker]) -> bool:
        """Gives a job to everyone who waits; whether anyone works."""
        for worker in (*workers, *(None for _ in range(self._processes - len(workers)))):
            if (worker is None or worker.job is None) and (job := next(jobs, None)) is not None:
                if worker is None:
                    worker = self._start()  # a new one in the place of none
                    workers.append(worker)
                self._give(worker, job)
        return any(worker.job for worker in workers)

    def _start(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        place = self._context.Value("q", -1)
        process = self._context.Process(target=_serve, args=(theirs, place, *self._arguments), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends with the process
        return _Worker(process, mine, place)

    def _give(self, worker: _Worker, job: tuple[int, ShardJob]) -> None:
        worker.job, worker.place.value = job, -1
        with suppress(OSError):  # it has ended meanwhile, which is heard of next
            worker.pipe.send(job[1])

    def _hear(self, worker: _Worker, workers: list[_Worker]) -> Iterator[tuple[int, ShardOutcome]]:
        assert worker.job is not None
        try:
            answer: Any = worker.pipe.recv()
        except (EOFError, OSError):
            workers.remove(worker)
            workers.append(self._replaced(worker))
            return
        number, worker.job, self._deaths_at_start = worker.job[0], None, 0
        if isinstance(answer, BaseException):
            raise answer
        yield number, answer

    def _replaced(self, dead: _Worker) -> _Worker:
        """A new process for the job of one that has ended, without the file that has ended it."""
        assert dead.job is not None
        dead.process.join()
        dead.pipe.close()
        number, job = dead.job
        place, how = dead.place.value, _ending(dead.process.exitcode or 0)
        if place < 0:
            self._deaths_at_start += 1
            if self._deaths_at_start >= _MOST_DEATHS_AT_START:
                raise JobFailedError(
                    f"worker processes end before they read a file ({how}); the machine may be out of memory."
                )
        else:
            self._deaths[number, place] += 1
            if self._deaths[number, place] >= _TRIES:
                job = job.without(place, f"the process that read it was ended {_TRIES} times ({how})")
        worker = self._start()
        self._give(worker, (number, job))
        return worker


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return (
        f"{name}, as the kernel does when memory runs out" if name == "SIGKILL" else f"{name}, a crash of its decoder"
    )


def _serve(
    pipe: Connection,
    place: "Synchronized[int]",
    make_converter: MakeConverter,
    strict: bool,
    counter: "Synchronized[int]",
    stop: Event,
) -> None:
    """The life of a worker: jobs come, outcomes and errors go back."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and stops its workers in good order

    def at(position: int) -> None:
        place.value = position

    def count() -> None:
        with counter.get_lock():
            counter.value += 1

    bench = Bench(make_converter(), strict, at, count, stop.is_set)
    while (job := _next_job(pipe)) is not None:
        try:
            answer: object = make_shard(bench, job)
        except StoppedError:
            return
        except BaseException as error:
            answer = error
        pipe.send(answer)


def _next_job(pipe: Connection) -> ShardJob | None:
    try:
        job: ShardJob = pipe.recv()
    except (EOFError, OSError):  # the parent has no more
        return None
    return job


def end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
