"""Evaluation beside the training: a task of its own reads a checkpoint back and measures its networks."""

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import ray
import torch

from dira_dist.background import Background
from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient, EvaluationRequest
from dira_dist.cluster.fit.evaluation_gpu import EvaluationGpu
from dira_dist.config import RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.jobs.base import TrainingJob
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation, read_evaluations
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.protocol import NullRun, Run
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder, step_of
from dira_dist.training.state import Checkpoint
from dira_dist.training.task import Evaluation

EVALUATION_WARNINGS_TAG = "dira.warnings.evaluation"
_POLL_S = 0.25
NO_GPU = (
    "evaluation.device: there is no GPU beside those of the workers, so that checkpoints are evaluated on the CPU; "
    "give the cluster one more, lower resources.workers, or set it to cpu"
)
UNUSABLE_GPU = (
    "evaluation.device: Ray gave a GPU and PyTorch finds none, so that checkpoints are evaluated on the CPU; see that "
    "drivers and a CUDA build of PyTorch are there, or set it to cpu"
)
_MAX_RETRIES = 2
_MOST_TRIES = 3

OnEvaluation = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class EvaluationSetup:
    """What the driver hands to every evaluating task.

    Attributes:
        tracking: the job's, its address settled, without measurements of the machine.
        run_id: MLflow run; empty without tracking.
    """

    job: TrainingJob
    tracking: TrackingConfig
    run_id: str


@dataclass(frozen=True)
class Answer:
    """What came of evaluating a checkpoint.

    Attributes:
        metrics: figures by name.
        refusal: in words, why there never will be any: a fault in a probe set ends no training.
        logged: whether the tracking server has taken them.
        warnings: what a person should know of them.
    """

    metrics: dict[str, float]
    refusal: str = ""
    logged: bool = True
    warnings: Sequence[str] = ()


def evaluate_checkpoint(setup: EvaluationSetup, request: EvaluationRequest) -> Answer:
    """Evaluate the networks of a checkpoint, and log figures and pictures to the MLflow run.

    Raises:
        OSError: the storage is away.
        BrokenCheckpointError: the checkpoint is not whole.
    """
    torch.set_num_threads(setup.job.evaluation.threads)
    checkpoint = CheckpointFolder(open_store(setup.job.run_folder)).fetch(request.checkpoint)
    try:
        evaluation = _evaluate(setup.job, request, checkpoint)
    except (RequestError, ValueError) as error:
        return Answer({}, f"{type(error).__name__}: {error}")
    run: Run = NullRun()
    if setup.run_id:
        run = TrackingRun.attach(setup.tracking, setup.run_id, folder=setup.job.run_folder)
    _log(run, setup.job, request, evaluation)
    logged = run.flush(setup.job.checkpoint.storage_timeout_s)
    unusable = (UNUSABLE_GPU,) if ray.get_gpu_ids() and _device().type == "cpu" else ()
    return Answer(evaluation.metrics, logged=logged, warnings=(*evaluation.warnings, *unusable))


def _evaluate(job: TrainingJob, request: EvaluationRequest, checkpoint: Checkpoint) -> Evaluation:
    task, device = job.build_task(), _device()
    networks = task.build()
    networks.load_state_dict(checkpoint.tensors["networks"])
    return task.evaluate(networks.to(device), device, checkpoint.position, title=f"{job.name}: {request.label}")


def _device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


def log_late(run: Run, store: Store) -> None:
    """Record in the MLflow run what did not reach it when it was evaluated; the pictures of that are lost."""
    folder = CheckpointFolder(store)
    there = folder.names()
    for evaluated in read_evaluations(store):
        if not evaluated.logged:
            run.log_checkpoint(folder.address(evaluated.checkpoint), evaluated.step, _numbers(evaluated.metrics))
            if evaluated.checkpoint not in there:
                run.log_removal(evaluated.step)


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _log(run: Run, job: TrainingJob, request: EvaluationRequest, evaluation: Evaluation) -> None:
    address = CheckpointFolder(open_store(job.run_folder)).address(request.checkpoint)
    run.log_checkpoint(address, request.step, _numbers(evaluation.metrics))
    if evaluation.warnings:
        run.set_tags({EVALUATION_WARNINGS_TAG: "\n".join(evaluation.warnings)})
    for name, picture in evaluation.pictures.items():
        run.log_picture(name, picture, request.step)


class EvaluationRunner(Background):
    """Has the labelled checkpoints of a run evaluated one after another while a ``with`` block runs.

    What earlier sessions left not evaluated comes first. Only this object writes ``evaluations.json``.

    Args:
        setup: for the tasks.
        coordinator: the job's, where workers request evaluations.
        gpu: what is reserved for them.
        on_evaluation: called in a thread after each evaluation with its label, step and figures.
    """

    def __init__(
        self,
        setup: EvaluationSetup,
        coordinator: CoordinatorClient,
        gpu: EvaluationGpu,
        on_evaluation: OnEvaluation | None = None,
    ) -> None:
        super().__init__("evaluations")
        self._setup, self._coordinator, self._on_evaluation = setup, coordinator, on_evaluation
        self._store, self._gpu = open_store(setup.job.run_folder), gpu
        self._task = ray.remote(max_retries=_MAX_RETRIES)(evaluate_checkpoint)
        self._queue: deque[EvaluationRequest] = deque()
        self._requests_known = 0
        self._tries: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._cancelled = threading.Event()

    def start(self) -> None:
        self._queue.extend(self._left_over())
        super().start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After a finished training wait for all evaluations; after a failed one leave them for its next session."""
        if kind is not None:
            self._cancelled.set()
        try:
            self.stop()
        except BaseException:  # a signal: the driver ends without the evaluations
            self._cancelled.set()
            raise

    def _left_over(self) -> list[EvaluationRequest]:
        if not self._setup.job.is_evaluated:
            return []
        labelled = CheckpointFolder(self._store).labelled()
        evaluated = {each.label for each in read_evaluations(self._store)}
        return [
            EvaluationRequest(label, step_of(name), name, figures)
            for label, (name, figures) in labelled.items()
            if label not in evaluated
        ]

    def _run(self) -> None:
        while not self._cancelled.is_set():
            ending = self._ended.is_set()  # asked first: what was requested before it is taken below
            self._take_requests()
            if self._queue:
                self._one(self._queue.popleft())
            elif ending:
                return
            else:
                self._ended.wait(_POLL_S)

    def _take_requests(self) -> None:
        new = self._coordinator.call(Coordinator.evaluation_requests, self._requests_known)
        self._requests_known += len(new)
        self._queue.extend(new)

    def _one(self, request: EvaluationRequest) -> None:
        try:
            answer = self._ask(request)
        except ray.exceptions.RayError as error:
            self._try_later(request, error)
            return
        if answer is None:
            return
        evaluated = EvaluationEntry(request.label, request.step, request.checkpoint, answer.metrics, answer.logged)
        try:
            add_evaluation(self._store, evaluated)
        except OSError as error:
            self._warn(f"the evaluation of {request.label} is not kept: {error}")
        if answer.refusal:
            self._warn(f"{request.label} was not evaluated: {answer.refusal}")
            return
        for warning in answer.warnings:
            self._warn_once(warning)  # the next evaluation finds the same
        if self._on_evaluation is not None:
            self._on_evaluation(request.label, request.step, answer.metrics)

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self._warn(warning)

    def _warn(self, warning: str) -> None:
        self._coordinator.send(Coordinator.warn, warning)

    def _try_later(self, request: EvaluationRequest, error: ray.exceptions.RayError) -> None:
        """After what may pass, such as a storage that is away; in this session, or in the next one."""
        self._tries[request.label] += 1
        if self._tries[request.label] < _MOST_TRIES:
            self._queue.append(request)
            return
        cause = getattr(error, "cause", None) or error
        reason = f"{type(cause).__name__}: {cause}"
        self._warn(f"{request.label} was not evaluated; the next start of this job tries again: {reason}")

    def _ask(self, request: EvaluationRequest) -> Answer | None:
        """The task's answer, or none where the run has failed meanwhile. What is known already nobody is asked for.

        Raises:
            RayError: there is no answer.
        """
        if request.figures is not None:
            return Answer(request.figures)
        options = self._gpu.options()
        if self._gpu.wanted and "num_gpus" not in options:
            self._warn_once(NO_GPU)
        task = self._task.options(**options).remote(self._setup, request)
        while not self._cancelled.is_set():
            ready, _ = ray.wait([task], timeout=_POLL_S)
            if ready:
                answer: Answer = ray.get(task)
                return answer
        ray.cancel(task, force=True)
        return None
