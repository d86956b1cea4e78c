"""What to try next: published weights first, then what was left unfinished, then what the sampler says."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dira_dist.metrics import Mode
from dira_dist.search.config import Dimension, SearchConfig
from dira_dist.search.optuna_internals import holds
from dira_dist.search.trial import Trial

DIRECTIONS: dict[Mode, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}


def distributions(space: Mapping[str, Dimension], now: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms.

    Args:
        space: by dotted key.
        now: the base's own value of each key; where it is a whole number, only whole numbers are tried.
    """
    return {key: _distribution(dimension, now[key]) for key, dimension in space.items()}


def _distribution(dimension: Dimension, now: Any) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    assert dimension.low is not None
    assert dimension.high is not None
    log = dimension.scale == "log"
    if isinstance(now, int) and not isinstance(now, bool):
        return IntDistribution(int(dimension.low), int(dimension.high), log=log)
    return FloatDistribution(dimension.low, dimension.high, log=log)


class Suggestions:
    """Optuna's sampler: it is asked for one configuration at a time, and given the result of each.

    A trial that was stopped early, or not evaluated at its end, is reported as pruned at its last step, not as one that
    ended with that value. Trials of an earlier start of the search are reported first, so that nothing learned is lost.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: Mapping[str, BaseDistribution],
        metrics: Sequence[str],
        modes: Sequence[Mode],
        known: Sequence[Trial] = (),
    ) -> None:
        self._space, self._metrics = dict(space), tuple(metrics)
        # The very same draws as before an interruption would only repeat what was tried.
        seed = config.seed + len(known)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        self._study = optuna.create_study(
            directions=[DIRECTIONS[mode] for mode in modes], sampler=_sampler(config, seed)
        )
        self._open: dict[str, optuna.Trial] = {}
        for trial in known:
            if trial.settled and self._contains(trial.params):
                self._study.add_trial(self._finished_trial(trial))

    def ask(self, name: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A configuration for the trial of this name; ``params`` where it is known already."""
        if params is not None and not self._contains(params):
            return dict(
                params
            )  # the published weights may lie outside the space: they are a baseline, not a suggestion
        if params is not None:
            self._study.enqueue_trial(dict(params))
        self._open[name] = self._study.ask(self._space)
        return dict(self._open[name].params)

    def tell(self, trial: Trial) -> None:
        """What came of a trial that this object was asked for."""
        asked = self._open.pop(trial.name, None)
        if asked is None:
            return
        finished = self._finished_trial(trial)
        if finished.state == optuna.trial.TrialState.PRUNED:
            for step, value in finished.intermediate_values.items():
                asked.report(value, step)
            self._study.tell(asked, state=finished.state)
        else:
            self._study.tell(asked, finished.values, state=finished.state)

    def _contains(self, params: Mapping[str, Any]) -> bool:
        return params.keys() == self._space.keys() and all(
            holds(self._space[key], value) for key, value in params.items()
        )

    def _finished_trial(self, trial: Trial) -> optuna.trial.FrozenTrial:
        values = [trial.metrics[metric] for metric in self._metrics if metric in trial.metrics]
        whole = len(values) == len(self._metrics)
        state = optuna.trial.TrialState.FAIL
        if whole and trial.evaluated_at_end:
            state = optuna.trial.TrialState.COMPLETE
        elif whole and trial.settled and len(values) == 1:
            state = optuna.trial.TrialState.PRUNED
        (first, *_) = self._metrics
        pruned = state == optuna.trial.TrialState.PRUNED
        return optuna.trial.create_trial(
            params=trial.params,
            distributions=self._space,
            state=state,
            values=values if state == optuna.trial.TrialState.COMPLETE else None,
            intermediate_values={step: metrics[first] for step, metrics in trial.history} if pruned else None,
        )


def _sampler(config: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Random at first, but not for the whole of a short search; trials side by side keep out of each other's way.
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=min(10, max(3, config.trials // 3)), constant_liar=True
    )
