"""Ray Tune, driven by a controller of trials: it runs the controller's trials and reports their results to it."""

import gc
import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dira_dist.cluster.ray_internals import remove_orphaned_groups
from dira_dist.cluster.tune.trial import OBJECTIVE, RUNG_STEP, TrialDriver, TrialPlan, TrialSetup
from dira_dist.cluster.tune.trials import TrialController, left_over, worth_another_try
from dira_dist.config import ENV_REFERENCE, JobFailedError, without_credentials
from dira_dist.environment import environment
from dira_dist.jobs.search_plan import SearchPlan
from dira_dist.search.trial import Trial

# A trial's own process takes nothing that a worker could want, and stays where the driver is.
TRIAL_SHARE = 0.001
TRIALS_END_WITHIN_S = 60.0
SWEEP_EVERY_S = 2.0
_HANDED_ON = re.compile(r"AWS_|MLFLOW_")
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's loop
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def scheduler_of(plan: SearchPlan, known: Sequence[Trial]) -> TrialScheduler:
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
            for step, metrics in trial.history:
                if step < plan.rungs.total_steps and (scores := plan.goal.scores(metrics)):
                    scheduler.seen_earlier(trial.name, {RUNG_STEP: step, OBJECTIVE: scores[0]})
    return scheduler


class _Asha(ASHAScheduler):
    """Knows trials by their own names, and stops no published weights.

    Tune calls a trial that is begun again by another id, and its evaluations come once more: they must not count beside
    the first ones. The published weights count at the rungs and are never stopped: all others are compared with them.
    """

    def seen_earlier(self, name: str, result: dict[str, Any]) -> None:
        """An evaluation of a trial that is over."""
        super().on_trial_add(None, _Named(name))
        super().on_trial_result(None, _Named(name), result)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _Named(_name(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = str(super().on_trial_result(tune_controller, _Named(_name(trial)), result))
        return TrialScheduler.CONTINUE if trial.config["trial"]["number"] == 0 else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _Named(_name(trial)), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _Named(_name(trial)))


@dataclass(frozen=True)
class _Named:
    """All that ASHA wants to know of a trial."""

    trial_id: str


def run_to_end(controller: TrialController[Any], wanted: Sequence[Trial], side_by_side: int) -> None:
    """Have these run to their end, those that fail once more."""
    known = {trial.name: trial for trial in controller.trials}
    controller.lay_out(left_over(known.get(trial.name, trial) for trial in wanted))
    run_trials(controller, FIFOScheduler(), side_by_side)
    names = {trial.name for trial in wanted}
    controller.lay_out(worth_another_try(trial for trial in controller.trials if trial.name in names))
    run_trials(controller, FIFOScheduler(), side_by_side)


def run_trials(controller: TrialController[Any], scheduler: TrialScheduler, side_by_side: int) -> None:
    """Have Ray Tune run what lies on the controller, again where Tune itself gives up.

    It does when Ray kills one of the trials' processes for want of memory. What it had begun is taken back then, and
    goes on from its checkpoints.
    """
    most, reasons = controller.plan.loaded.job.resources.max_failures, list[str]()
    while controller.to_run:
        try:
            _tune_once(controller, scheduler, side_by_side)
        except Exception as error:  # Tune wraps what it does not expect in RuntimeError and TuneError
            reasons.append(without_credentials(f"{type(error).__name__}: {error}").partition("\n")[0])
        else:
            return
        if len(reasons) > most:
            raise JobFailedError(f"{controller.plan.loaded.job.name} failed: {reasons[-1]}\nthe same command goes on")
        gc.collect()  # the processes of trials end with their last handle
        _wait_for_trials_to_end()
        controller.take_back(reasons[-1])


def _tune_once(controller: TrialController[Any], scheduler: TrialScheduler, side_by_side: int) -> None:
    """What Tune writes by itself is not read again: the state of the search is the controller's."""
    trainable = tune.with_parameters(TrialDriver, setup=_setup(controller))
    logging.getLogger("ray.tune").setLevel(
        logging.ERROR
    )  # it warns of missing result files of its own, which are not needed
    with (
        environment(**_TUNE_SETTINGS),
        tempfile.TemporaryDirectory(prefix="dira-tune-", ignore_cleanup_errors=True) as folder,
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, {_here(): TRIAL_SHARE}),
            tune_config=tune.TuneConfig(
                search_alg=_NextTrial(controller),
                scheduler=scheduler,
                num_samples=controller.to_run,
                max_concurrent_trials=side_by_side,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=controller.plan.loaded.job.resources.max_failures),
                callbacks=[_Listener(controller)],
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
    """Gives Tune the controller's next trial. It learns nothing itself, for results go to the controller."""

    def __init__(self, controller: TrialController[Any]) -> None:
        super().__init__()
        self._controller = controller

    def suggest(self, trial_id: str) -> Any:
        trial = self._controller.next_trial()
        if trial is None:
            return Searcher.FINISHED
        return {"trial": {"name": trial.name, "number": trial.number, "params": trial.params, "seed": trial.seed}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see :class:`_Listener`."""

    def set_search_properties(self, *properties: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept, for the state is the controller's; Tune requires that the file exists."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search goes on from its own state")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Listener(tune.Callback):
    """Takes Tune's events to the controller."""

    def __init__(self, controller: TrialController[Any]) -> None:
        self._controller, self._swept_at_s = controller, time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """What a stopped or lost trial's workers held is given back, or the trials to come would wait for ever."""
        if time.monotonic() - self._swept_at_s >= SWEEP_EVERY_S:
            remove_orphaned_groups()
            self._swept_at_s = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._controller.started(_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if evaluated := result.get("evaluated"):
            self._controller.evaluated(_name(trial), evaluated["step"], evaluated["metrics"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = (trial.last_result or {}).get("ended")
        if ended:
            self._controller.ended(_name(trial), **ended)
        else:
            self._controller.stopped(_name(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._controller.ended(_name(trial), status="failed", reason="its driving process was lost too often")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


def _setup(controller: TrialController[Any]) -> TrialSetup:
    tags = controller.plan.tags() | ({"mlflow.parentRunId": controller.run_id} if controller.run_id else {})
    return TrialSetup(controller.plan, tags, str(Path.cwd()), handed_on(controller.plan))


def handed_on(plan: TrialPlan) -> dict[str, str]:
    """What of the driver's environment other processes need: what the job names, and how stores are reached."""
    wanted = set(ENV_REFERENCE.findall(str(plan.written)))
    return {name: value for name, value in os.environ.items() if name in wanted or _HANDED_ON.match(name)}
