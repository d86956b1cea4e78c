"""``dira-dist predict`` and ``dira-dist embed`` here, or over a Ray cluster, with the same results."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.ingest.sharding import discreet_storage
from dira_dist.prediction import predict as floor
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.prediction.place import STATE
from dira_dist.prediction.predict import Progress, Results
from dira_dist.prediction.work import Chunk, Runner, Tell, Work

_UNDER_WAY = 256


def predict(
    model: str,
    source: str,
    dest: str,
    options: PredictOptions | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Results:
    """A fine-tuned model over ordinary files, or a shard set: tables and masks.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID``; a checkpoint's or a run's folder; or
            a model's folder.
        source: folder or ``s3://bucket/prefix`` of files, or a shard set.
        dest: folder or prefix for what is written.
        options: how.
        address: of a Ray cluster (``auto``, ``host:port``, ``ray://host:port``); this machine alone if none.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: told of the progress.

    Raises:
        RequestError: model, source, options and ``dest`` do not fit together; nothing was started or overwritten.
        StoreError: source or destination failed for longer than retries last.
        JobFailedError: the disk is full, or a process was ended; the same call goes on.
    """
    with _runner(address) as runner:
        return floor.predict(model, source, dest, options, tracking_uri=tracking_uri, progress=progress, runner=runner)


def embed(
    model: str,
    source: str,
    dest: str,
    options: EmbedOptions | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Results:
    """Features of any model's encoder, as :func:`predict` gives answers.

    Raises:
        RequestError, StoreError, JobFailedError: as there.
    """
    with _runner(address) as runner:
        return floor.embed(model, source, dest, options, tracking_uri=tracking_uri, progress=progress, runner=runner)


@contextmanager
def _runner(address: str | None) -> Iterator[Runner | None]:
    if address is None:
        yield None
        return
    from dira_dist.cluster.session import cluster_at  # ray takes seconds to import

    with cluster_at(address, f"--address {address}"):
        yield _OnRay()


@dataclass(frozen=True)
class _OnRay:
    """The cluster that this process is connected to: a task for each chunk, with a CPU, and a GPU where there are."""

    def device(self, asked: str | None) -> str:
        """Raises:
        RequestError: a GPU is asked for, and the cluster has none.
        """
        import ray

        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if asked not in (None, "cpu", "cuda") or (asked == "cuda" and not has_gpus):
            raise RequestError(f"device {asked!r}: allowed on this cluster are cpu{' and cuda' if has_gpus else ''}")
        return asked or ("cuda" if has_gpus else "cpu")

    def run(self, work: Work, todo: Sequence[Chunk], tell: Tell) -> None:
        """See :class:`~dira_dist.prediction.work.Runner`; some hundred chunks are with the cluster at a time."""
        import ray

        _check_seen(work, todo)
        task = ray.remote(_do).options(num_cpus=1, num_gpus=int(work.device == "cuda"))
        packed = [ray.put(work)]  # in a list, so that each task's process reads it once
        waiting, under_way = deque(todo), dict[Any, int]()
        try:
            while waiting or under_way:
                for chunk in islice(_taken(waiting), _UNDER_WAY - len(under_way)):
                    under_way[task.remote(packed, chunk)] = len(chunk[1])
                done, _ = ray.wait(list(under_way))
                for each in done:
                    ray.get(each)
                    tell(under_way.pop(each))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None  # without the remote traceback, which may quote a file's name
        except ray.exceptions.RayError as error:
            lost = type(error).__name__
            raise JobFailedError(f"the cluster lost a task for good ({lost}); the same command goes on") from error
        finally:
            for each in under_way:
                ray.cancel(each)


def _taken(waiting: deque[Chunk]) -> Iterator[Chunk]:
    while waiting:
        yield waiting.popleft()


_here: dict[Any, Work] = {}


def _do(packed: list[Any], chunk: Chunk) -> None:
    """In a process of the cluster, whose logs hold no names of files."""
    import ray

    if packed[0] not in _here:
        _here.clear()  # of a work before this one
        _here[packed[0]] = ray.get(packed[0])
    with discreet_storage(True):
        _here[packed[0]].do(chunk, lambda done: None)


def _check_seen(work: Work, todo: Sequence[Chunk]) -> None:
    """Raises:
    RequestError: a machine of the cluster does not see source or destination.
    """
    from dira_dist.cluster.folders import check_seen, other_machines

    files = [f"{work.dest}/{STATE}", *(f"{work.reader.address}/{name}" for name in _first_files(todo))]
    own = [str(Path(file).absolute()) for file in files if "://" not in file]
    if own:
        check_seen(own, other_machines())


def _first_files(todo: Sequence[Chunk]) -> list[str]:
    entry = next((entry for _, entries in todo for entry in entries if entry.item is not None), None)
    return [] if entry is None or entry.item is None else list(entry.item.files[:1])
