"""``kind: tune``: Ray Tune over a pretraining job, each trial a Ray Train run with workers of its own."""

import gc
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from dira_dist.cluster.capacity import cluster_grows
from dira_dist.cluster.desk import WINNER_FILE, Desk, DeskView, trial_name
from dira_dist.cluster.orphans import remove_orphaned_groups
from dira_dist.cluster.record import differing_keys, read_record
from dira_dist.cluster.session import gpus_per_worker, ray_session
from dira_dist.cluster.stopping import JobStoppedError
from dira_dist.cluster.trial import OBJECTIVE, RUNG_STEP, TrialDriver, TrialSetup
from dira_dist.config import JobFailedError, RequestError, flatten, without_credentials
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.job import LoadedSearch, ResourcesConfig
from dira_dist.search.fitting import Share, trials_that_fit
from dira_dist.search.ledger import REFUSED, SearchRecord, Trial, of_search, read_search
from dira_dist.search.ranking import candidates
from dira_dist.search.suggestions import Suggestions
from dira_dist.trials import SearchPlan, plan_search

MAY_GROW = ("trials", "confirm_seeds")
MAY_CHANGE = ("max_concurrent",)
# A trial's own process takes nothing that a worker could want, and stays where the driver is.
TRIAL_SHARE = 0.001
TRIALS_END_WITHIN_S = 60.0
SWEEP_EVERY_S = 2.0
_HANDED_ON = re.compile(r"AWS_|MLFLOW_")
_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")


@dataclass(frozen=True)
class SearchOutcome:
    """What a finished search leaves behind.

    Attributes:
        name: of the search.
        run_id: parent run in MLflow; empty without tracking.
        page: its page, or the command that opens it.
        winner: number of the trial whose values are kept.
        best: address of the winner's job file.
        verdict: by how much it beats the published weights and how sure that is, in words.
        table: rows in Markdown.
        counts: trials and repetitions by how they ended.
        already_done: the search was finished before; nothing was done now.
    """

    name: str
    run_id: str = ""
    page: str = ""
    winner: int = 0
    best: str = ""
    verdict: str = ""
    table: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    already_done: bool = False

    def lines(self) -> Iterator[str]:
        """The outcome as a person reads it."""
        yield from self.table
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        yield f"{self.name}: {'was finished already' if self.already_done else 'finished'}: {counts}"
        yield f"verdict     {self.verdict}"
        here = self.best if "://" not in self.best else f"{WINNER_FILE}, once it is fetched"
        yield f"winner      {self.best}  (dira-dist run {here})"
        if self.run_id:
            yield f"MLflow run  {self.run_id}  ({self.page})"


def search(loaded: LoadedSearch, *, console: Console | None = None) -> SearchOutcome:
    """Run a search to its end, or go on with the search of its name.

    Trials that ended are kept; those that did not go on from their checkpoints.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: no trial could be trained to its end, or the search was stopped; the same call goes on.
    """
    plan = plan_search(loaded)
    located = loaded.job.located()
    check_reachable(located.checkpoint.storage, write=True)
    store = open_store(located.run_folder)
    record = _claim(store, SearchRecord(loaded.record, plan.facts.train.digest))
    if record.outcome:
        return SearchOutcome(**{**record.outcome, "already_done": True})
    console = console or Console(file=sys.stderr, soft_wrap=True)
    with ray_session(located.resources), _terminated_as_interrupted():
        side_by_side = _side_by_side(plan)
        try:
            with Desk(plan, store, record, console) as desk, DeskView(desk, console):
                _search(desk, side_by_side)
                _confirm(desk, side_by_side)
                return _concluded(desk)
        except KeyboardInterrupt:
            raise JobStoppedError(
                f"{plan.loaded.job.name} was stopped; what it found is in {store.address}, and the same command goes on"
            ) from None


def _concluded(desk: Desk) -> SearchOutcome:
    ranking = desk.conclude()
    outcome = SearchOutcome(
        name=desk.plan.loaded.job.name,
        run_id=desk.run_id,
        page=desk.page,
        winner=ranking.winner.number,
        best=desk.address(WINNER_FILE),
        verdict=ranking.verdict(),
        table=list(ranking.table()),
        counts=dict(Counter(trial.status for trial in desk.trials)),
    )
    desk.concluded(asdict(outcome))
    return outcome


def _claim(store: Store, wanted: SearchRecord) -> SearchRecord:
    """The search this job goes on with. Nothing is written here.

    Raises:
        RequestError: if a search of this name with another configuration or other images is there.
    """
    existing = read_search(store)
    if existing is None:
        if read_record(store) is not None:
            raise RequestError(
                f"{store.address}: a pretraining run of this name is there; give the search another name"
            )
        return wanted
    there, here = existing.job, wanted.job
    differences = [f"base.{line}" for line in differing_keys(there["base"], here["base"])]
    old, new = flatten(there["search"]), flatten(here["search"])
    differences += [
        f"search.{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in MAY_CHANGE and not (key in MAY_GROW and new[key] > old[key])
    ]
    if existing.train_digest != wanted.train_digest:
        differences.append("the training images: another digest there")
    if differences:
        raise RequestError(
            f"{store.address}: a search of this name with another configuration is there already:\n  "
            + "\n  ".join(differences)
            + "\ngive the search another name, or the same values to go on with it"
        )
    grew = any(new[key] > old[key] for key in MAY_GROW)
    return replace(existing, job=here, outcome={} if grew else existing.outcome)


def _side_by_side(plan: SearchPlan) -> int:
    """How many trials run at once.

    Raises:
        RequestError: if the cluster does not hold one, or not as many as asked for, or grows and nobody said how far.
    """
    if cluster_grows():
        return _asked_of_a_growing_cluster(plan)
    resources = plan.loaded.job.resources
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in nodes]
    shares = _shares(resources)
    fit = trials_that_fit(sizes, shares)
    asked = plan.loaded.search.max_concurrent
    if fit == 0 or (asked or 0) > fit:
        room = ", ".join(f"{cpus:g} CPUs and {gpus} GPUs" for cpus, gpus in sizes)
        each = f"{len(shares)} workers with {shares[0].cpus:g} CPUs and {shares[0].gpus:g} GPUs"
        remedy = f"lower it to {fit} or leave it out" if fit else "lower base.resources, or use a larger cluster"
        raise RequestError(
            f"search.max_concurrent: {asked or 1} trials of {each} are asked for at once, and {fit} fit into this Ray "
            f"(nodes: {room}); {remedy}"
        )
    return min(asked or fit, plan.most_trials)


def _asked_of_a_growing_cluster(plan: SearchPlan) -> int:
    """An autoscaler makes room for what is asked for, and does not say for how much."""
    asked = plan.loaded.search.max_concurrent
    if asked is None:
        raise RequestError(
            "search.max_concurrent: left out, and this cluster grows with what is asked of it; say how many trials may "
            "run at once"
        )
    return min(asked, plan.most_trials)


def _shares(resources: ResourcesConfig) -> list[Share]:
    return [Share(resources.cpus_per_worker, gpus_per_worker(resources))] * resources.max_workers


def _search(desk: Desk, side_by_side: int) -> None:
    """Train the search's trials: the published weights, then those left unfinished, then new ones."""
    plan, known = desk.plan, of_search(desk.trials)
    suggestions = Suggestions(plan.loaded.search, plan.space, plan.goal.metrics, plan.goal.modes, known)
    first = [] if known else [Trial(trial_name(plan, 0), 0, dict(plan.published))]
    waiting = first + _left_over(known)
    desk.begin(waiting, plan.loaded.search.trials - len(first) - len(known), suggestions)
    scheduler = _scheduler(plan, known)
    _tune(desk, scheduler, side_by_side)
    desk.begin(_worth_another_try(of_search(desk.trials)), suggestions=suggestions)
    _tune(desk, scheduler, side_by_side)


def _confirm(desk: Desk, side_by_side: int) -> None:
    """Repeat the best trials and the published weights with further seeds, to the end."""
    plan = desk.plan
    first = plan.loaded.job.seed
    wanted = [
        Trial(f"{trial.name}-seed{seed}", trial.number, trial.params, seed)
        for seed in range(first + 1, first + 1 + plan.loaded.search.confirm_seeds)
        for trial in candidates(desk.trials, plan.goal)
    ]
    known = {trial.name: trial for trial in desk.trials}
    desk.begin(_left_over(known.get(trial.name, trial) for trial in wanted))
    _tune(desk, FIFOScheduler(), side_by_side)
    desk.begin(_worth_another_try(trial for trial in desk.trials if trial.seed is not None))
    _tune(desk, FIFOScheduler(), side_by_side)


def _worth_another_try(trials: Iterable[Trial]) -> list[Trial]:
    """Failed trials, but for those that were refused: a machine may have been short of something for a while."""
    return [trial for trial in trials if trial.status == "failed" and not trial.reason.startswith(REFUSED)]


def _left_over(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if not trial.settled]


def _scheduler(plan: SearchPlan, known: Sequence[Trial]) -> TrialScheduler:
    """ASHA that knows what the trials of an earlier start showed at its rungs, or none that stops trials."""
    if plan.rungs is None:
        return FIFOScheduler()
    scheduler = _Asha(
        time_attr=RUNG_STEP,
        metric=OBJECTIVE,
        mode="max",
        max_t=plan.rungs.total_steps,
        grace_period=plan.rungs.grace_steps,
        reduction_factor=plan.rungs.factor,
        stop_last_trials=False,
    )
    for trial in known:
        if trial.settled:
            earlier = _Earlier(trial.name)
            scheduler.on_trial_add(None, earlier)
            for step, metrics in trial.history:
                if step < plan.rungs.total_steps and (scores := plan.goal.scores(metrics)):
                    scheduler.on_trial_result(None, earlier, {RUNG_STEP: step, OBJECTIVE: scores[0]})
    return scheduler


class _Asha(ASHAScheduler):
    """Stops no published weights, though they count at the rungs: a yardstick that was cut off measures nothing."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return TrialScheduler.CONTINUE if _is_published(trial) else decision


def _is_published(trial: Any) -> bool:
    return not isinstance(trial, _Earlier) and trial.config["trial"]["number"] == 0


@dataclass(frozen=True)
class _Earlier:
    """All that a scheduler wants to know of a trial that is over."""

    trial_id: str


def _tune(desk: Desk, scheduler: TrialScheduler, side_by_side: int) -> None:
    """Have Ray Tune run what lies on the desk, again where Tune itself gives up.

    It does when Ray kills one of the trials' processes for want of memory. What it had begun is taken back then, and
    goes on from its checkpoints.
    """
    most, reasons = desk.plan.loaded.job.resources.max_failures, list[str]()
    while desk.to_run:
        try:
            _tune_once(desk, scheduler, side_by_side)
        except Exception as error:  # Tune wraps what it does not expect in RuntimeError and TuneError
            reasons.append(without_credentials(f"{type(error).__name__}: {error}").partition("\n")[0])
        else:
            return
        if len(reasons) > most:
            raise JobFailedError(f"{desk.plan.loaded.job.name} failed: {reasons[-1]}\nthe same command goes on")
        gc.collect()  # the processes of trials end with their last handle
        _wait_for_trials_to_end()
        desk.take_back(reasons[-1])


def _tune_once(desk: Desk, scheduler: TrialScheduler, side_by_side: int) -> None:
    """What Tune writes by itself is not needed again: the search's record is the desk's."""
    trainable = tune.with_parameters(TrialDriver, setup=_setup(desk))
    with _tune_settings(), tempfile.TemporaryDirectory(prefix="dira-tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {_here(): TRIAL_SHARE}),
            tune_config=tune.TuneConfig(
                search_alg=_NextTrial(desk),
                scheduler=scheduler,
                num_samples=desk.to_run,
                max_concurrent_trials=side_by_side,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=desk.plan.loaded.job.resources.max_failures),
                callbacks=[_Listener(desk)],
                verbose=0,
            ),
        )
        tuner.fit()


def _here() -> str:
    """Ray's resource of the driver's node, of which there is 1."""
    return f"node:{ray.util.get_node_ip_address()}"


def _wait_for_trials_to_end() -> None:
    """Two processes must not drive one trial; not for ever, for another search may be at work on this node."""
    give_up_at_s = time.monotonic() + TRIALS_END_WITHIN_S
    while ray.available_resources().get(_here(), 0.0) < 1 - TRIAL_SHARE / 2 and time.monotonic() < give_up_at_s:
        time.sleep(0.5)


class _NextTrial(Searcher):
    """Hands out what lies on the desk. Nothing is learned here: the desk hears of results first."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> Any:
        trial = self._desk.next_trial()
        if trial is None:
            return Searcher.FINISHED
        return {"trial": {"name": trial.name, "number": trial.number, "params": trial.params, "seed": trial.seed}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see :class:`_Listener`."""

    def set_search_properties(self, *properties: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the search's record is the desk's; Tune only wants the file to be there."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search goes on from its own record")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Listener(tune.Callback):
    """Takes Tune's events to the desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._swept_at_s = desk, time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """What a stopped or lost trial's workers held is given back, or the trials to come would wait for ever."""
        if time.monotonic() - self._swept_at_s >= SWEEP_EVERY_S:
            remove_orphaned_groups()
            self._swept_at_s = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._desk.started(_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if judged := result.get("judged"):
            self._desk.judged(_name(trial), judged["step"], judged["metrics"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = (trial.last_result or {}).get("ended")
        if ended:
            self._desk.ended(_name(trial), **ended)
        else:
            self._desk.stopped(_name(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._desk.ended(_name(trial), status="failed", reason="its driving process was lost too often")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


def _setup(desk: Desk) -> TrialSetup:
    job = desk.plan.loaded.job
    tags = {"dira.search": job.name} | ({"mlflow.parentRunId": desk.run_id} if desk.run_id else {})
    wanted = set(_REFERENCE.findall(str(desk.plan.loaded.base)))
    environment = {name: value for name, value in os.environ.items() if name in wanted or _HANDED_ON.match(name)}
    return TrialSetup(desk.plan, tags, str(Path.cwd()), environment)


_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's loop
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def _tune_settings() -> Iterator[None]:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses its own result files, which nobody needs
    before = {name: os.environ.get(name) for name in _TUNE_SETTINGS}
    os.environ.update(_TUNE_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a search like Ctrl-C does; only a main thread can hear it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
