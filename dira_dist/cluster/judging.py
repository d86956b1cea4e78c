"""Judging beside the training: a task of its own reads a checkpoint back and says what its networks are worth."""

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from dira_dist.cluster.board import JudgementRequest
from dira_dist.config import RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.evaluation.judge import Judge, Judgement
from dira_dist.evaluation.record import Judged, add_judgement, read_judgements
from dira_dist.job import PretrainJob
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.pictures import judgement_pictures
from dira_dist.tracking.run import NullRun, TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder, step_of
from dira_dist.training.networks import build_networks
from dira_dist.training.state import Checkpoint

EVALUATION_WARNINGS_TAG = "dira.warnings.evaluation"
_POLL_S = 0.25
_MAX_RETRIES = 2
_MOST_TRIES = 3

OnJudgement = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class JudgeSetup:
    """What the driver hands to every judging task.

    Attributes:
        tracking: the job's, its address settled, without measurements of the machine.
        run_id: MLflow run; empty without tracking.
    """

    job: PretrainJob
    tracking: TrackingConfig
    run_id: str


@dataclass(frozen=True)
class Answer:
    """What came of judging a checkpoint.

    Attributes:
        metrics: figures by name.
        refusal: in words, why there never will be any: trouble with a probe set ends no training.
        told: whether the tracking server has taken them.
        warnings: what a person should know of them.
    """

    metrics: dict[str, float]
    refusal: str = ""
    told: bool = True
    warnings: tuple[str, ...] = ()


def judge_checkpoint(setup: JudgeSetup, request: JudgementRequest) -> Answer:
    """Judge the networks of a checkpoint, and record figures and pictures in the MLflow run.

    Raises:
        OSError: the storage is away.
        BrokenCheckpointError: the checkpoint is not whole.
    """
    torch.set_num_threads(setup.job.evaluation.threads)
    checkpoint = CheckpointFolder(open_store(setup.job.run_folder)).fetch(request.checkpoint)
    try:
        judgement = _judge(setup.job, checkpoint)
    except (RequestError, ValueError) as error:
        return Answer({}, f"{type(error).__name__}: {error}")
    run = TrackingRun.attach(setup.tracking, setup.run_id) if setup.run_id else NullRun()
    _record(run, setup.job, request, judgement)
    return Answer(judgement.metrics, told=run.flush(setup.job.checkpoint.patience_s), warnings=judgement.warnings)


def _judge(job: PretrainJob, checkpoint: Checkpoint) -> Judgement:
    model = job.model.model_copy(update={"init": None})
    networks = build_networks(model, job.method, job.adversarial, seed=job.seed)
    networks.load_state_dict(checkpoint.tensors["networks"])
    judge = Judge(job.data.val, job.probe, job.views, job.seed, job.data.image_size, job.data.storage_patience_s)
    position = checkpoint.position
    begun = job.stages[: position.stage + (position.step_in_stage > 0)]
    plays = any(stage.objective == "dira" for stage in begun)
    return judge.judge(networks.unet, torch.device("cpu"), networks.discriminator.eval() if plays else None)


def tell_late(run: TrackingRun | NullRun, store: Store) -> None:
    """Record in the MLflow run what did not reach it when it was judged; the pictures of that are lost."""
    folder = CheckpointFolder(store)
    there = folder.names()
    for judged in read_judgements(store):
        if not judged.told:
            run.log_checkpoint(folder.address(judged.checkpoint), judged.step, _numbers(judged.metrics))
            if judged.checkpoint not in there:
                run.log_removal(judged.step)


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _record(run: TrackingRun | NullRun, job: PretrainJob, request: JudgementRequest, judgement: Judgement) -> None:
    address = CheckpointFolder(open_store(job.run_folder)).address(request.checkpoint)
    run.log_checkpoint(address, request.step, _numbers(judgement.metrics))
    if judgement.warnings:
        run.set_tags({EVALUATION_WARNINGS_TAG: "\n".join(judgement.warnings)})
    title = f"{job.name}: {request.label}"
    for name, picture in judgement_pictures(judgement, job.adversarial.loss, title).items():
        run.log_picture(name, picture, request.step)


class Judging:
    """Has the labelled checkpoints of a run judged one after another while a ``with`` block runs.

    What earlier sessions left unjudged comes first. The record of all judgements is this object's to write.

    Args:
        setup: for the tasks.
        board: handle of the job's board, where workers ask for judgements.
        heard: called in a thread after each judgement with its label, step and figures.
    """

    def __init__(self, setup: JudgeSetup, board: Any, heard: OnJudgement | None = None) -> None:
        self._setup, self._board, self._heard = setup, board, heard
        self._store = open_store(setup.job.run_folder)
        self._task = ray.remote(num_cpus=0, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD")(judge_checkpoint)
        self._queue: deque[JudgementRequest] = deque()
        self._tries: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._ending, self._cancelled = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="judging", daemon=True)

    def __enter__(self) -> "Judging":
        self._queue.extend(self._left_over())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """After a finished training wait for all judgements; after a failed one leave them for its next session."""
        if kind is not None:
            self._cancelled.set()
        self._ending.set()
        try:
            self._thread.join()
        except BaseException:  # a signal: nobody waits for the judgements any more
            self._cancelled.set()
            raise

    def _left_over(self) -> list[JudgementRequest]:
        if not self._setup.job.is_judged:
            return []
        labelled = CheckpointFolder(self._store).labelled()
        judged = {each.label for each in read_judgements(self._store)}
        return [JudgementRequest(label, step_of(name), name) for label, name in labelled.items() if label not in judged]

    def _run(self) -> None:
        while not self._cancelled.is_set():
            ending = self._ending.is_set()  # asked first: what was requested before it is taken below
            self._queue.extend(ray.get(self._board.take_requests.remote()))
            if self._queue:
                self._one(self._queue.popleft())
            elif ending:
                return
            else:
                self._ending.wait(_POLL_S)

    def _one(self, request: JudgementRequest) -> None:
        try:
            answer = self._ask(request)
        except ray.exceptions.RayError as error:
            self._try_later(request, error)
            return
        if answer is None:
            return
        judged = Judged(request.label, request.step, request.checkpoint, answer.metrics, answer.told)
        try:
            add_judgement(self._store, judged)
        except OSError as error:
            self._board.warn.remote(f"the judgement of {request.label} is not kept: {error}")
        if answer.refusal:
            self._board.warn.remote(f"{request.label} was not judged: {answer.refusal}")
            return
        self._warn_once(answer.warnings)
        if self._heard is not None:
            self._heard(request.label, request.step, answer.metrics)

    def _warn_once(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._board.warn.remote(warning)

    def _try_later(self, request: JudgementRequest, error: ray.exceptions.RayError) -> None:
        """After what may pass, such as a storage that is away; in this session, or in the next one."""
        self._tries[request.label] += 1
        if self._tries[request.label] < _MOST_TRIES:
            self._queue.append(request)
            return
        cause = getattr(error, "cause", None) or error
        reason = f"{type(cause).__name__}: {cause}"
        self._board.warn.remote(f"{request.label} was not judged; the next start of this job tries again: {reason}")

    def _ask(self, request: JudgementRequest) -> Answer | None:
        """The task's answer, or none where the run has failed meanwhile.

        Raises:
            RayError: there is no answer.
        """
        task = self._task.remote(self._setup, request)
        while not self._cancelled.is_set():
            ready, _ = ray.wait([task], timeout=_POLL_S)
            if ready:
                answer: Answer = ray.get(task)
                return answer
        ray.cancel(task, force=True)
        return None
