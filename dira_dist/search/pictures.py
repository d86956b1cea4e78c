"""A search in pictures: parallel coordinates, each figure against each key, the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dira_dist.drawing import Picture, drawn
from dira_dist.search.config import Dimension
from dira_dist.search.ranking import Goal, fronts
from dira_dist.search.trial import Trial, of_search

COLOURS = "viridis"
PUBLISHED: dict[str, Any] = {"marker": "*", "s": 180, "color": "crimson", "zorder": 4, "label": "published weights"}


def search_pictures(trials: Sequence[Trial], goal: Goal, space: Mapping[str, Dimension]) -> dict[str, Picture]:
    """All pictures of what was evaluated so far, by name; none before the first evaluation.

    Args:
        trials: of the search; repetitions are left out.
        goal: its figures.
        space: its keys; those on a log scale are drawn on one.
    """
    evaluated = [trial for trial in of_search(trials) if goal.scores(trial.metrics) is not None]
    if not evaluated:
        return {}
    pictures = {"parallel coordinates": parallel_coordinates(evaluated, goal, space)}
    for metric in goal.metrics:
        pictures[f"{metric} against each key"] = against_each_key(evaluated, metric, space)
    if len(goal.metrics) > 1:
        pictures["pareto front"] = pareto_front(evaluated, goal)
    return pictures


def parallel_coordinates(trials: Sequence[Trial], goal: Goal, space: Mapping[str, Dimension]) -> Picture:
    """A line for each trial through its values, on an axis for each key and figure; coloured by the first figure."""
    columns = {key: ([trial.params.get(key) for trial in trials], _is_log(space[key])) for key in space}
    columns |= {metric: ([trial.metrics[metric] for trial in trials], False) for metric in goal.metrics}
    places = {name: _places(values, log) for name, (values, log) in columns.items()}
    heights = np.array([places[name][0] for name in columns])  # (columns, trials)
    leading = np.array(places[goal.metrics[0]][0])
    figure = Figure(figsize=(2.2 * len(columns) + 1, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, trial in enumerate(trials):
        published = trial.number == 0
        style = (
            {"color": "crimson", "linewidth": 2.5}
            if published
            else {"color": _colour(leading[place]), "linewidth": 1.2}
        )
        axes.plot(heights[:, place], linestyle="-" if trial.evaluated_at_end else ":", **style)
    for column, name in enumerate(columns):
        axes.axvline(column, color="grey", linewidth=0.8)
        for height, text in places[name][1]:
            axes.annotate(text, (column, height), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8, rotation=15)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    axes.set_title("red: published weights; dotted: not evaluated at their end", fontsize=8)
    return drawn(figure, dpi=110)


def against_each_key(trials: Sequence[Trial], metric: str, space: Mapping[str, Dimension]) -> Picture:
    """A scatter plot for each key; trials that were not evaluated at their end are hollow."""
    figure = Figure(figsize=(3.4 * len(space), 3.4), layout="constrained")
    row = figure.subplots(1, len(space), squeeze=False)[0]
    for axes, (key, dimension) in zip(row, space.items(), strict=True):
        for published in (False, True):
            shown = [trial for trial in trials if (trial.number == 0) == published and key in trial.params]
            _scatter(axes, [(trial.params[key], trial.metrics[metric], trial) for trial in shown], published)
        if _is_log(dimension):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(key, fontsize=8)
        axes.tick_params(labelsize=7)
    row[0].set_ylabel(metric, fontsize=8)
    return drawn(figure, dpi=110)


def pareto_front(trials: Sequence[Trial], goal: Goal) -> Picture:
    """The first two figures against each other; what no other trial dominates is joined."""
    first, second = goal.metrics[:2]
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    for published in (False, True):
        shown = [trial for trial in trials if (trial.number == 0) == published]
        _scatter(axes, [(trial.metrics[first], trial.metrics[second], trial) for trial in shown], published)
    for layer in fronts(trials, goal):
        line = sorted((trial.metrics[first], trial.metrics[second]) for trial in layer)
        axes.plot(*zip(*line, strict=True), color="black", linewidth=1, zorder=1)
        break
    axes.set_xlabel(first, fontsize=8)
    axes.set_ylabel(second, fontsize=8)
    return drawn(figure, dpi=110)


def _scatter(axes: Axes, points: Sequence[tuple[Any, float, Trial]], published: bool) -> None:
    for x, y, trial in points:
        x = x if isinstance(x, int | float) and not isinstance(x, bool) else str(x)
        face = "C0" if trial.evaluated_at_end else "none"
        style: dict[str, Any] = PUBLISHED if published else {"s": 36, "facecolors": face, "edgecolors": "C0"}
        axes.scatter([x], [y], **style)
        axes.annotate(str(trial.number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    if published and points:
        axes.legend(fontsize=7, loc="best")


def _is_log(dimension: Dimension) -> bool:
    return dimension.choices is None and dimension.scale == "log"


def _places(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights between 0 and 1 on an axis, and where its ends or its words stand."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        words = sorted({str(value) for value in values})
        height = {word: place / max(1, len(words) - 1) for place, word in enumerate(words)}
        return [height[str(value)] for value in values], [(height[word], word) for word in words]
    numbers = [math.log(value) if log and value > 0 else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    spread = high - low or 1.0
    return [(number - low) / spread for number in numbers], [(0.0, f"{min(values):.3g}"), (1.0, f"{max(values):.3g}")]


def _colour(height: float) -> Any:
    return colormaps[COLOURS](0.95 * height)
