"""How far a search is, in one line."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from dira_dist.search.ranking import Goal, ranked
from dira_dist.search.trial import Trial, of_search


def describe(trials: Sequence[Trial], planned: int, goal: Goal, left_s: float | None) -> str:
    """Trials running, done, stopped early; best so far; time left.

    Args:
        trials: all that were begun.
        planned: trials and repetitions that there will be in all.
        goal: by what is evaluated.
        left_s: seconds, where it is known.
    """
    counts = Counter(trial.status for trial in trials)
    parts = [f"{counts['running']} running", f"{counts['finished']} done", f"{counts['stopped']} stopped early"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    line = f"trials: {', '.join(parts)} of {planned}"
    metric = goal.metrics[0]
    if best := ranked(trials, goal):
        line += f"; best {metric} {best[0].metrics[metric]:.4g} (trial {best[0].number})"
    elif evaluated := [each for each in of_search(trials) if each.status != "failed" and goal.scores(each.metrics)]:
        sofar = max(evaluated, key=lambda trial: goal.scores(trial.metrics) or ())
        line += f"; best so far {metric} {sofar.metrics[metric]:.4g} (trial {sofar.number}, step {sofar.step})"
    return line + (f"; {timedelta(seconds=int(left_s))} left" if left_s is not None else "")


def seconds_left(
    elapsed_s: float, steps_done: int, trials: Sequence[Trial], planned: int, total_steps: int
) -> float | None:
    """By the pace in optimiser steps of all trials together, or none before the first evaluation.

    Trials to come are taken to be as long as those that ended were on average, for some will be stopped early.

    Args:
        elapsed_s: since this start of the search.
        steps_done: in that time, over all trials.
        trials: all that were begun.
        planned: trials and repetitions in all.
        total_steps: of a whole trial.
    """
    if steps_done <= 0:
        return None
    ended = [trial.step for trial in trials if trial.status in ("finished", "stopped", "failed")]
    usual = sum(ended) / len(ended) if ended else total_steps
    running = sum(max(0.0, usual - trial.step) for trial in trials if trial.status == "running")
    to_come = max(0, planned - sum(trial.status != "waiting" for trial in trials)) * usual
    return elapsed_s / steps_done * (running + to_come)
