"""Pictures of a report: curves, a confusion matrix, and the best and the worst masks."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dira_dist.drawing import Picture, drawn
from dira_dist.evaluation.classification import BINS, ClassPredictions, Floats, auroc, average_precision
from dira_dist.evaluation.localization import ENERGY, HIT, IOU, MODEL, LocalizationCase
from dira_dist.evaluation.segmentation import DICE, SegmentationCase

_SIDE_IN, _DPI = 4.2, 110
_SHOWN = 4
_MAPS_IN_A_ROW = 6
_PLAIN_COLOURS = 10
_IN_A_LINE = 4  # of the legend
_TRUE, _SAID = "#2fbf4f", "#ff5a36"


def class_pictures(predictions: ClassPredictions, chances: Floats) -> dict[str, Picture]:
    """Curves of each class: ROC, precision and recall, reliability; a confusion matrix of classes that exclude another.

    Args:
        predictions: the truth.
        chances: (N, K) calibrated.
    """
    classes = list(_known_classes(predictions, chances))
    lines = -(-len(classes) // _IN_A_LINE)
    figure = Figure(figsize=(3 * _SIDE_IN, _SIDE_IN + 0.4 + 0.17 * lines), layout="constrained")
    roc, recall, reliability = figure.subplots(1, 3)
    palette = colormaps["tab20" if len(classes) > _PLAIN_COLOURS else "tab10"]
    for axes in (roc, recall, reliability):
        axes.set_prop_cycle(color=list(palette(np.arange(palette.N))))
    for name, found, truth in classes:
        hits, misses = curve(found, truth)
        ones = np.ones((1, len(truth)))
        area = f"{name}: AUROC {auroc(found, truth, ones)[0]:.3f}, "
        roc.plot(
            misses / misses[-1], hits / hits[-1], label=area + f"AP {average_precision(found, truth, ones)[0]:.3f}"
        )
        precision = hits[1:] / (hits[1:] + misses[1:])
        (line,) = recall.plot(hits / hits[-1], [precision[0], *precision], drawstyle="steps-pre", label=name)
        recall.axhline(truth.mean(), color=line.get_color(), linewidth=0.7, linestyle=":")
        _draw_reliability(reliability, found, truth, name)
    for axes, title, across, up in (
        (roc, "ROC", "1 - specificity", "sensitivity"),
        (recall, "precision and recall (dotted: prevalence)", "recall", "precision"),
        (reliability, "calibration", "chance, as the model says it", "share that has it"),
    ):
        axes.set(title=title, xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        if axes is not recall:
            axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    if classes:
        figure.legend(*roc.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=_IN_A_LINE)
    pictures = {"curves": drawn(figure, _DPI)}
    if predictions.kind == "multiclass":
        pictures["confusion"] = _confusion(predictions, chances)
    return pictures


def curve(chances: Floats, truth: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """True and false positives above each threshold, from none to all; samples with the same chance come together.

    Args:
        chances: (N,).
        truth: (N,).
    """
    order = np.argsort(-chances, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
    hits, misses = (np.cumsum(kind[order], dtype=np.float64)[ends] for kind in (truth, ~truth))
    return np.concatenate([[0], hits]), np.concatenate([[0], misses])


def _known_classes(
    predictions: ClassPredictions, chances: Floats
) -> Iterator[tuple[str, Floats, npt.NDArray[np.bool_]]]:
    for place, name in enumerate(predictions.classes):
        known = ~np.isnan(predictions.targets[:, place])
        truth = predictions.targets[known, place] == 1
        if truth.any() and not truth.all():
            yield name, chances[known, place], truth


def _draw_reliability(axes: Axes, chances: Floats, truth: npt.NDArray[np.bool_], name: str) -> None:
    """A point for each bin that has samples, as large as they are many."""
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    filled = [place for place in range(BINS) if (bins == place).any()]
    across = [chances[bins == place].mean() for place in filled]
    up = [truth[bins == place].mean() for place in filled]
    (line,) = axes.plot(across, up, linewidth=1, label=name)
    sizes = [4 + 60 * float((bins == place).mean()) for place in filled]
    axes.scatter(across, up, s=sizes, color=line.get_color())


def _confusion(predictions: ClassPredictions, chances: Floats) -> Picture:
    known = ~np.isnan(predictions.targets).any(axis=1)
    truth, said = predictions.targets[known].argmax(1), chances[known].argmax(1)
    count = len(predictions.classes)
    table = np.zeros((count, count), dtype=int)
    np.add.at(table, (truth, said), 1)
    shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(_SIDE_IN, _SIDE_IN), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(count):
        for column in range(count):
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = f"{table[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    names = list(predictions.classes)
    axes.set_xticks(range(count), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(count), names, fontsize=8)
    axes.set(xlabel="likeliest, as the model says", ylabel="truth")
    return drawn(figure, _DPI)


def case_pictures(cases: Sequence[SegmentationCase]) -> dict[str, Picture]:
    """The worst and the best cases by their mean Dice, with the outlines of truth (green) and model (red).

    Where neither has anything there is no Dice, and nothing to look at.
    """
    seen = [case for case in cases if case.image is not None and not np.isnan(case.figures[DICE]).all()]
    if not seen:
        return {}
    order = sorted(seen, key=lambda case: _mean_dice(case))
    count = min(_SHOWN, len(order))
    rows = {"worst": order[:count], "best": order[::-1][:count]}
    figure = Figure(figsize=(2.4 * count, 2 * _row_in(seen)), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False)
    for (title, shown), line in zip(rows.items(), grid, strict=True):
        for case, axes in zip(shown, line, strict=True):
            _draw_case(axes, case, f"{title}: Dice {_mean_dice(case):.3f}")
    return {"cases": drawn(figure, _DPI)}


def _row_in(cases: Sequence[SegmentationCase]) -> float:
    """Height of a row of cases with their titles: of squares, or of what is as flat as slices side by side."""
    shares = [case.image.shape[0] / case.image.shape[1] for case in cases if case.image is not None]
    return 2.4 * min(1.0, max(shares, default=1.0)) + 0.3


def _mean_dice(case: SegmentationCase) -> float:
    return float(np.nanmean(case.figures[DICE]))


def _draw_case(axes: Axes, case: SegmentationCase, title: str) -> None:
    assert case.image is not None and case.predicted is not None and case.truth is not None
    axes.imshow(case.image, cmap="gray", vmin=0, vmax=255)
    for masks, colour in ((case.truth, _TRUE), (case.predicted, _SAID)):
        for mask in masks:
            if mask.any() and not mask.all():
                axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def localization_pictures(cases: Sequence[LocalizationCase]) -> dict[str, Picture]:
    """The cases that were kept to look at: each image, its map over it, true boxes (green) and the model's (red).

    They were chosen before anything was found of them, so that good and bad ones are as frequent as in the set.
    """
    seen = [case for case in cases if case.seen is not None]
    if not seen:
        return {}
    columns = min(_MAPS_IN_A_ROW, len(seen))
    rows = -(-len(seen) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for case, axes in zip(seen, grid.flat, strict=False):
        _draw_map(axes, case)
    return {"localization": drawn(figure, _DPI)}


def _draw_map(axes: Axes, case: LocalizationCase) -> None:
    seen, figures = case.seen, case.figures[MODEL]
    assert seen is not None
    axes.imshow(seen.image, cmap="gray", vmin=0, vmax=255)
    axes.imshow(seen.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * np.sqrt(np.clip(seen.heat, 0, 1)))
    for boxes, colour in ((seen.true, _TRUE), (seen.found, _SAID)):
        for box in boxes:
            (top, left), (bottom, right) = box.low, box.high
            corner = (left - 0.5, top - 0.5)  # a picture's pixel i is drawn around i
            axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.1))
    verdict = "hit" if figures[HIT] else "miss"
    axes.set_title(f"{case.label}: {verdict}\nIoU {figures[IOU]:.2f}, energy {figures[ENERGY]:.2f}", fontsize=7)


def chances_side_by_side(
    images: Sequence[npt.NDArray[np.uint8]],
    truth: Sequence[int] | npt.NDArray[np.int64],
    models: Mapping[str, Floats],
    classes: Sequence[str],
) -> Picture:
    """What several classifiers say of the same images, a row for each: those at the quartiles of what the last model
    gives the true class more than the first one, so that neither the best nor the worst are picked. Truth green.

    Args:
        images: (H, W) each, N of them.
        truth: (N,) place of the true class.
        models: (N, K) chances, by what a model is called.
        classes: K names.
    """
    rows = _at_quartiles(
        *(chances[np.arange(len(truth)), truth] for chances in (*models.values(),)[:: len(models) - 1])
    )
    figure = Figure(figsize=(2.6 * (1 + len(models)), 2.2 * len(rows)), layout="constrained")
    for line, place in zip(figure.subplots(len(rows), 1 + len(models), squeeze=False), rows, strict=True):
        line[0].imshow(images[place], cmap="gray", vmin=0, vmax=255)
        line[0].set_title(f"truth: {classes[truth[place]]}", fontsize=8)
        line[0].set_axis_off()
        for axes, (name, chances) in zip(line[1:], models.items(), strict=True):
            _draw_chances(axes, chances[place], int(truth[place]), classes)
            axes.set_title(f"{name}: {chances[place, truth[place]]:.2f} for the truth", fontsize=8)
    return drawn(figure, _DPI)


def _draw_chances(axes: Axes, chances: Floats, truth: int, classes: Sequence[str]) -> None:
    colours = [_TRUE if place == truth else "0.6" for place in range(len(classes))]
    axes.barh(range(len(classes)), chances, color=colours)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set(xlim=(0, 1))
    axes.tick_params(axis="x", labelsize=7)
    axes.invert_yaxis()


def _at_quartiles(first: Floats, last: Floats) -> list[int]:
    """Places whose gains from (N,) to (N,) are the lower quartile, the median and the upper quartile."""
    order = np.argsort(last - first, kind="stable")
    return [int(order[round(share * (len(order) - 1))]) for share in (0.25, 0.5, 0.75)]
