"""Pictures for people: pure functions from tensors and numbers to uint8 images ``(H, W, 3)``.

A picture has one name for the whole run: MLflow's page then shows it once, with a slider over the steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dira_dist.drawing import Picture, drawn
from dira_dist.evaluation.evaluator import Evaluation
from dira_dist.objectives.adversarial import AdversarialLoss

RESTORATIONS, SCORES, FEATURES, LOSSES = "restorations", "discriminator scores", "probe features", "loss curves"

FloatArray = npt.NDArray[np.floating]

CELL_PX = 192
GAP_PX = 4
CAPTION_PX = 20
BLOCKS = 2
OTHERS = "others"
_INK = 235
_PAPER = 16
_COLOURS = ("#3b6fb6", "#d1495b", "#2e8b57", "#e08e2b", "#7d5ba6", "#16a3a3", "#8c6d46", "#767676")


def evaluation_pictures(evaluation: Evaluation, loss: AdversarialLoss = "lsgan", title: str = "") -> dict[str, Picture]:
    """Every picture that an evaluation has something for, by its name.

    Args:
        evaluation: of the networks at a moment.
        loss: that the discriminator learns with; it says what its scores mean.
        title: above the features.
    """
    pictures, restorations = {}, evaluation.restorations
    if restorations is not None:
        distorted, restored, target = (
            images.float().numpy() for images in (restorations.distorted, restorations.restored, restorations.target)
        )
        pictures[RESTORATIONS] = restoration_grid(distorted, restored, target)
        if (scores := evaluation.scores) is not None:
            pictures[SCORES] = score_maps(target, restored, scores.target.numpy(), scores.restored.numpy(), loss=loss)
    if evaluation.features is not None:
        features = evaluation.features
        pictures[FEATURES] = feature_scatter(features.features.numpy(), features.classes, title)
    return pictures


def restoration_grid(
    distorted: FloatArray,
    restored: FloatArray,
    target: FloatArray,
    *,
    captions: Sequence[str] = (),
    rows: int = 3,
    cell_px: int = CELL_PX,
) -> Picture:
    """Of each image in a row: distorted view, restoration, target, and where restoration and target differ.

    The difference is signed, red where the restoration is too bright and blue where it is too dark; full colour is a
    difference of 0.5.

    Args:
        distorted: ``(B, 1 or 3, H, W)`` in [0, 1], the network's input. Of a cube ``(B, C, X, Y, Z)`` its three middle
            slices are shown, see :func:`orthogonal_slices`.
        restored: ``(B, 1, H, W)`` in [0, 1].
        target: ``(B, 1, H, W)`` in [0, 1].
        captions: a line under each image's row, such as its key.
        rows: at most so many, in each of two blocks side by side.
        cell_px: width of a cell; heights keep the images' shape.
    """
    count = min(BLOCKS * rows, len(target))
    columns = [_grey(_slice(np.asarray(images[:count]))) for images in (distorted, restored, target)]
    columns.append(_difference(columns[1], columns[2]))
    titles = ("distorted view", "restoration", "target", "difference")
    cell_px = cell_px if target.ndim == 4 else round(1.5 * cell_px)  # three slices side by side
    return _in_blocks([_rgb(column) for column in columns], titles, captions[:count], cell_px)


def score_maps(
    target: FloatArray,
    restored: FloatArray,
    target_scores: FloatArray,
    restored_scores: FloatArray,
    *,
    loss: AdversarialLoss = "lsgan",
) -> Picture:
    """What the discriminator says of each patch: real crops and restorations beside its score maps.

    Dark is "restored", bright is "real": the scores of ``lsgan`` between 0 and 1, of ``hinge`` between -1 and 1, and
    the sigmoid of those of ``bce``; of ``wgan_gp`` that of their distance from the mean of all. What lies outside is
    cut off. The mean stands under each map.

    Args:
        target: ``(B, 1, H, W)`` in [0, 1].
        restored: likewise.
        target_scores: ``(B, 1, h, w)``, the discriminator on the targets.
        restored_scores: ``(B, 1, h, w)``, the discriminator on the restorations.
        loss: that the discriminator learns with.
    """
    images = [_rgb(_grey(_slice(np.asarray(part[:4])))) for part in (target, restored)]
    middle = float(np.mean([np.mean(target_scores), np.mean(restored_scores)]))
    real, fake = (_as_probability(np.asarray(part[:4]), loss, middle) for part in (target_scores, restored_scores))
    columns = (images[0], _painted_scores(_slice(real)[:, 0]), images[1], _painted_scores(_slice(fake)[:, 0]))
    captions = [
        f"mean score: {a:.2f} of the target, {b:.2f} of the restoration (0 restored, 1 real)"
        for a, b in zip(*(part.reshape(len(part), -1).mean(axis=1) for part in (real, fake)), strict=True)
    ]
    cell_px = CELL_PX if target.ndim == 4 else round(1.5 * CELL_PX)
    return _in_blocks(columns, ("target", "its scores", "restoration", "its scores"), captions, cell_px)


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], boundaries: Mapping[int, str]
) -> Picture:
    """Losses over steps, one small chart each, with the stages marked.

    Args:
        curves: name to (steps, values).
        boundaries: first step of each stage to its name.
    """
    columns = min(3, max(1, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.5 * rows), dpi=100, layout="constrained")
    for index, (name, (steps, values)) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.plot(steps, values, color=_COLOURS[index % len(_COLOURS)], linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("optimiser step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        for step, stage in boundaries.items():
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(
                stage,
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, -3),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
                va="top",
            )
    return drawn(figure)


def feature_scatter(features: FloatArray, classes: Sequence[str], title: str = "") -> Picture:
    """The features of a labelled set in two dimensions: their first two principal components, coloured by class.

    Args:
        features: ``(N, C)``.
        classes: N class names; beyond the most frequent eight they share a colour.
        title: above the chart.
    """
    points, shares = principal_components(features)
    figure = Figure(figsize=(10.0, 4.0), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shown = _most_frequent(classes)
    names = np.array([name if name in shown else OTHERS for name in classes])
    for index, name in enumerate(dict.fromkeys((*sorted(shown), *names[names == OTHERS]))):
        chosen = points[names == name]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, alpha=0.7, color=colour, label=f"{name} ({len(chosen)})")
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn(figure)


def _most_frequent(classes: Sequence[str]) -> set[str]:
    """As many classes as there are colours, or one fewer where others are left."""
    ranked = [name for name, _ in Counter(classes).most_common()]
    return set(ranked if len(ranked) <= len(_COLOURS) else ranked[: len(_COLOURS) - 1])


def principal_components(features: FloatArray) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Coordinates ``(N, 2)`` along the first two principal components, and the share of variance of each.

    The signs are fixed so that the largest entry of each axis is positive: the picture of a run does not flip.
    """
    centred = np.asarray(features, dtype=np.float64) - np.mean(features, axis=0, dtype=np.float64)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    scales, axes = np.pad(scales, (0, 2))[:2], axes[:2]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    points = np.pad(centred @ axes.T, ((0, 0), (0, 2 - len(axes))))
    total = max(float((centred**2).sum()), np.finfo(np.float64).tiny)
    return points, (float(scales[0] ** 2 / total), float(scales[1] ** 2 / total))


def _slice(images: FloatArray) -> FloatArray:
    """The three middle slices of cubes side by side; planes as they are."""
    return orthogonal_slices(images) if images.ndim == 5 else images


def orthogonal_slices(cubes: FloatArray) -> FloatArray:
    """The middle slices of cubes across z, y and x, side by side, padded with 0 below to the same height.

    Axial as a radiologist sees it, the patient's left on the right and the front above; coronal and sagittal with the
    head above. Voxels are drawn as squares, whatever their spacing.

    Args:
        cubes: ``(B, C, X, Y, Z)``, towards left, back and head.

    Returns:
        ``(B, C, max(Y, Z), X + X + Y)``.
    """
    x, y, z = (side // 2 for side in cubes.shape[2:])
    axial, coronal, sagittal = cubes[..., z], cubes[..., y, ::-1], cubes[..., x, :, ::-1]
    turned = [np.swapaxes(plane, -1, -2) for plane in (axial, coronal, sagittal)]
    height = max(plane.shape[2] for plane in turned)
    missing = [((0, 0), (0, 0), (0, height - plane.shape[2]), (0, 0)) for plane in turned]
    return np.concatenate([np.pad(plane, rest) for plane, rest in zip(turned, missing, strict=True)], axis=3)


def _grey(images: FloatArray) -> npt.NDArray[np.float32]:
    """``(B, C, H, W)`` to ``(B, H, W)``, the mean of the channels."""
    return np.asarray(images.mean(axis=1), dtype=np.float32)


def _rgb(images: FloatArray) -> npt.NDArray[np.float32]:
    images = np.asarray(images, dtype=np.float32)
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def _difference(restored: FloatArray, target: FloatArray) -> npt.NDArray[np.float32]:
    painted = colormaps["coolwarm"](np.clip(0.5 + (restored - target), 0, 1))
    return np.asarray(painted[..., :3], dtype=np.float32)


def _as_probability(scores: FloatArray, loss: AdversarialLoss, middle: float = 0.0) -> npt.NDArray[np.float32]:
    """Scores so that 0 is what the discriminator learns to give restorations, and 1 what it learns to give targets.

    A critic's scores have no such ends: 1/2 is what lies in the middle.
    """
    if loss == "bce":
        scores = 1 / (1 + np.exp(-np.clip(scores, -50, 50)))
    elif loss == "hinge":
        scores = (scores + 1) / 2
    elif loss == "wgan_gp":
        scores = 1 / (1 + np.exp(-np.clip(scores - middle, -50, 50)))
    return np.asarray(scores, dtype=np.float32)


def _painted_scores(scores: FloatArray) -> npt.NDArray[np.float32]:
    painted = colormaps["viridis"](np.clip(scores, 0, 1))
    return np.asarray(painted[..., :3], dtype=np.float32)


def _in_blocks(columns: Sequence[FloatArray], titles: Sequence[str], captions: Sequence[str], cell_px: int) -> Picture:
    """Rows in two blocks side by side: MLflow's page shows wide pictures whole and cuts the foot of high ones."""
    count = len(columns[0])
    height = -(-count // BLOCKS)
    parts = [slice(start, start + height) for start in range(0, count, height)]
    grids = [labelled_grid([column[part] for column in columns], titles, captions[part], cell_px) for part in parts]
    tallest = max(len(grid) for grid in grids)
    padded = [np.pad(grid, ((0, tallest - len(grid)), (0, 0), (0, 0)), constant_values=_PAPER) for grid in grids]
    return np.concatenate(padded, axis=1)


def labelled_grid(
    columns: Sequence[FloatArray], titles: Sequence[str], captions: Sequence[str], cell_px: int
) -> Picture:
    """Columns of ``(B, H, W, 3)`` in [0, 1] side by side, a title over each and a caption under each row."""
    count, height, width = columns[-1].shape[0], *columns[0].shape[1:3]
    cell = (cell_px, max(1, round(cell_px * height / width)))
    row_px = cell[1] + GAP_PX + (CAPTION_PX if captions else 0)
    size = (len(columns) * (cell_px + GAP_PX) + GAP_PX, CAPTION_PX + count * row_px + GAP_PX)
    canvas = Image.new("RGB", size, (_PAPER,) * 3)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    resample = {True: Image.Resampling.BILINEAR, False: Image.Resampling.NEAREST}
    for column, images in enumerate(columns):
        left = GAP_PX + column * (cell_px + GAP_PX)
        draw.text((left + 2, 2), titles[column], fill=(_INK,) * 3, font=font)
        for row in range(count):
            pixels = (np.clip(images[row], 0, 1) * 255).round().astype(np.uint8)
            # Score maps have few, large patches: enlarged as blocks, each one's extent stays visible.
            smooth = 3 * pixels.shape[1] >= cell_px
            picture = Image.fromarray(pixels).resize(cell, resample[smooth])
            canvas.paste(picture, (left, CAPTION_PX + row * row_px))
    for row, caption in enumerate(captions):
        draw.text((GAP_PX + 2, CAPTION_PX + row * row_px + cell[1] + 2), caption[:110], fill=(170,) * 3, font=font)
    return np.asarray(canvas)
