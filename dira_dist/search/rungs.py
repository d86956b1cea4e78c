"""Rungs of asynchronous successive halving in optimiser steps, and how often trials are evaluated to have them.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar: *A System for Massively Parallel Hyperparameter Tuning*,
MLSys 2020. At rung k, after ``grace * factor^k`` steps, the best one in ``factor`` of the trials seen there goes on.
"""

from dataclasses import dataclass

from dira_dist.config import RequestError
from dira_dist.search.config import SearchConfig


@dataclass(frozen=True)
class Rungs:
    """Where trials are compared.

    Attributes:
        grace_steps: the first rung.
        factor: from rung to rung.
        evaluate_every_steps: optimiser steps between evaluations of a trial; each rung is a multiple of it.
        total_steps: of a whole trial; its end is no rung, for there nothing is left to stop.
    """

    grace_steps: int
    factor: int
    evaluate_every_steps: int
    total_steps: int

    @property
    def steps(self) -> tuple[int, ...]:
        """All rungs, rising."""
        found, step = [], self.grace_steps
        while step < self.total_steps:
            found.append(step)
            step *= self.factor
        return tuple(found)


def plan_rungs(config: SearchConfig, total_steps: int, evaluate_every_steps: int | None) -> Rungs | None:
    """The rungs of a search, or none where it stops no trial early.

    Args:
        config: of the search.
        total_steps: of the shortest trial.
        evaluate_every_steps: what the base says of how often it is evaluated, if anything.

    Raises:
        RequestError: where the first rung lies behind the end, or where evaluations miss the rungs.
    """
    if not config.stops_early:
        return None
    every = evaluate_every_steps or 1
    grace = config.grace_steps or every * max(1, round(total_steps / config.reduction_factor**2 / every))
    if every >= total_steps and config.grace_steps is None:
        raise RequestError(
            f"base.evaluation.every_steps: a trial has {total_steps} steps, and would be evaluated every {every}, so "
            f"none could be stopped early; give fewer than {total_steps}, leave it out, or take search.scheduler: fifo"
        )
    if grace >= total_steps:
        raise RequestError(
            f"search.grace_steps: a trial has {total_steps} steps, and none would be stopped after {grace}; "
            f"give fewer than {total_steps}, or scheduler: fifo"
        )
    if grace % every:
        raise RequestError(
            f"search.grace_steps: {grace} is no multiple of base.evaluation.every_steps, {every}, so no evaluation "
            f"falls on a rung; give a multiple of {every}, or leave one of the two out"
        )
    return Rungs(grace, config.reduction_factor, evaluate_every_steps or grace, total_steps)
