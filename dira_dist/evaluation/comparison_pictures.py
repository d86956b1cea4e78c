"""The learning curves of a comparison."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dira_dist.drawing import Picture, drawn
from dira_dist.evaluation.comparison import ComparedStarts


def learning_curves(found: ComparedStarts, figure: str, images: Mapping[float, int]) -> Picture:
    """A line for each start over the number of images, on a log scale, with a band of 95 % and a point for each seed.

    Args:
        found: the comparison.
        figure: what is drawn, as people write it.
        images: that were learned from, by fraction.
    """
    canvas = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = canvas.subplots()
    for number, start in enumerate(found.starts):
        cells, colour = found.of(start), f"C{number}"
        across = [images[cell.fraction] for cell in cells]
        axes.plot(across, [cell.mean.value for cell in cells], color=colour, marker="o", markersize=4, label=start)
        low, high = [cell.mean.low for cell in cells], [cell.mean.high for cell in cells]
        axes.fill_between(across, low, high, color=colour, alpha=0.15, linewidth=0)
        if len(cells) == 1:  # a band of one amount has no width
            axes.errorbar(
                across,
                [cells[0].mean.value],
                np.abs([[low[0]], [high[0]]] - np.array([[cells[0].mean.value]])),
                color=colour,
                capsize=4,
            )
        for cell, place in zip(cells, across, strict=True):
            axes.scatter([place] * len(cell.by_seed), cell.by_seed, s=9, color=colour, alpha=0.6, linewidths=0)
    axes.set_xscale("log")
    axes.set_xticks(sorted(images[fraction] for fraction in found.fractions))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="images learned from", ylabel=f"{figure} on the test set")
    axes.set_title("mean over the seeds with its 95 % interval; small dots: single fits", fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=9)
    return drawn(canvas, dpi=120)
