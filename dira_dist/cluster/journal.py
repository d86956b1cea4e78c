"""What the first worker writes down of a run: figures, judgements with their pictures, checkpoint addresses."""

from collections.abc import Callable, Mapping
from typing import Any

from dira_dist.cluster.progress import BoardTracker
from dira_dist.config import RequestError
from dira_dist.data.store import StoreError
from dira_dist.evaluation.judge import Judgement, Restorations
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.pictures import restoration_grid
from dira_dist.tracking.run import NullRun, TrackingRun

FLUSH_S = 60.0


class Journal:
    """Writes to the MLflow run and to the progress board, and remembers the judgements for the checkpoints.

    Attributes:
        quality: figures of each judgement so far, by its label.
    """

    def __init__(
        self,
        run: TrackingRun | NullRun,
        storage: str,
        board: BoardTracker,
        judge: Callable[[], Judgement],
        quality: Mapping[str, dict[str, float]],
    ) -> None:
        self._run, self._storage, self._board, self._judge = run, storage, board, judge
        self.quality = dict(quality)

    @classmethod
    def open(
        cls,
        tracking: TrackingConfig,
        run_id: str,
        *,
        storage: str,
        board: Any,
        judge: Callable[[], Judgement],
        quality: Mapping[str, dict[str, float]],
        pending: list[list[Any]],
    ) -> "Journal":
        """Go on with the MLflow run of the job, or write to the board alone where there is none.

        Args:
            storage: address below which the run's checkpoints lie.
            board: handle of the progress board.
            judge: looks at the networks as they are when it is called.
            quality: judgements that the resumed checkpoint carried.
            pending: figures it carried that had not reached the tracking server.
        """
        run = TrackingRun.attach(tracking, run_id, pending) if run_id else NullRun()
        return cls(run, storage, BoardTracker(board), judge, quality)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log_metrics(metrics, step)
        self._board.log_metrics(metrics, step)

    def judge(self, label: str, step: int) -> None:
        """Judge the networks now, and file figures and a picture under ``label``."""
        self._board.say(f"judging: {label}")
        try:
            judgement = self._judge()
        except (RequestError, StoreError, ValueError) as error:  # trouble with a probe set stops no training
            self._board.warn(f"after {label} nothing was judged: {error}")
            return
        self.quality[label] = judgement.metrics
        self._run.log_metrics(judgement.metrics, step)
        if judgement.restorations is not None:
            self._run.log_picture(f"restoration/{label}", _grid(judgement.restorations), step)
        if judgement.metrics.get("val/collapsed"):
            self._board.warn(f"after {label} the encoder hardly tells its inputs apart: {judgement.metrics}")

    def checkpointed(self, name: str, step: int) -> None:
        """A checkpoint was committed under the run's folder."""
        self._run.log_checkpoint(f"{self._storage}/{name}", step)

    def pending(self) -> list[list[Any]]:
        return self._run.pending()

    def close(self) -> None:
        """Wait, not for ever, until everything has arrived."""
        if not self._run.flush(FLUSH_S):
            self._board.warn(f"not all figures reached the tracking server within {FLUSH_S:g} s; they are kept")


class Silence:
    """Writes nothing: the journal of all workers but the first."""

    quality: Mapping[str, dict[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def judge(self, label: str, step: int) -> None: ...

    def checkpointed(self, name: str, step: int) -> None: ...

    def pending(self) -> list[list[Any]]:
        return []

    def close(self) -> None: ...


def _grid(images: Restorations) -> Any:
    return restoration_grid(images.distorted.numpy(), images.restored.numpy(), images.target.numpy())
