"""One start of a job: what its driver works with from the first write to the end."""

from collections.abc import Mapping
from dataclasses import dataclass

from dira_dist.cluster.fit.evaluations import OnEvaluation
from dira_dist.config import JobFailedError
from dira_dist.data.store import Store
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedJob
from dira_dist.jobs.preflight import Preflight
from dira_dist.runs.run import read_run
from dira_dist.tracking.config import TrackingConfig


@dataclass(frozen=True)
class FitSession:
    """One start of a job.

    Attributes:
        loaded: the job, its paths resolved.
        facts: what is known of it before anything starts.
        store: of the run's folder.
        on_evaluation: called after each evaluation.
        tags: of the MLflow run, besides its own.
    """

    loaded: LoadedJob
    facts: Preflight
    store: Store
    on_evaluation: OnEvaluation | None
    tags: Mapping[str, str]

    @property
    def job(self) -> TrainingJob:
        return self.loaded.job

    @property
    def job_as_it_ran(self) -> TrainingJob:
        """The job in the precision that its workers settled; as it was given where they settled none."""
        state = read_run(self.store)
        return self.job.in_precision(state.precision) if state and state.precision else self.job

    @property
    def tracking(self) -> TrackingConfig:
        """Tracking without measuring the machine, which the first worker does."""
        return self.job.tracking.model_copy(update={"system_metrics_every_s": 0.0})

    @property
    def how_to_go_on(self) -> str:
        """Where the run's checkpoints are, and what goes on from them."""
        return f"its checkpoints are in {self.job.run_folder}; the same command goes on from the newest"

    def undelivered(self) -> JobFailedError:
        """The training is done and the tracking server is away."""
        return JobFailedError(
            f"{self.job.name} is trained, but its tracking server did not take all figures; the same command delivers "
            "them"
        )
