"""Synthetic chest radiographs: anatomy drawn as layers of attenuation, with lesions whose place and kind are known.

They stand in for an archive where there is none: the quickstart, tests and demonstrations. A phantom is a function of
``(seed, number)`` alone. Two neighbouring numbers are two images of one patient: the same anatomy, another exposure,
another pose, their own findings. The primary findings are balanced in every block of six numbers.

Beside these findings, each at its place, a patient's lungs may have a diffuse pattern, as those of interstitial disease
have: a fine network (reticular), a coarse one (honeycomb) or many small spots (miliary). Both images of a patient show
it, at any place of the lungs and among local findings that have nothing to do with it; how strong and how coarse it is
differs from image to image. The patterns are balanced in every block of as many patients.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.quickstart.radiograph import ORGANS, SIDES, LesionBox, Radiograph, draw_anatomy, soft_step

FINDINGS = ("normal", "nodule", "consolidation", "effusion", "cardiomegaly", "pneumothorax")
CLEAR = "clear"
PATTERNS = (CLEAR, "reticular", "honeycomb", "miliary")
IMAGES_PER_PATIENT = 2
_SECOND_FINDING = 0.15


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph and all that is known about it.

    Attributes:
        image: uint8 (H, W), dense structures bright.
        organs: uint8 (H, W), indices into :data:`ORGANS`.
        finding: the primary finding, one of :data:`FINDINGS`.
        findings: all findings; ``("normal",)`` where there is none.
        boxes: one for each lesion.
        patient: identifier shared by the images of one patient.
        pattern: of both lungs, one of :data:`PATTERNS`.
    """

    image: NDArray[np.uint8]
    organs: NDArray[np.uint8]
    finding: str
    findings: tuple[str, ...]
    boxes: tuple[LesionBox, ...]
    patient: str
    pattern: str


# -------------------------------------------------------------------- lesions


def _spot_in_lung(radiograph: Radiograph, margin: float) -> tuple[float, float]:
    """A random place at least ``margin`` inside a lung and away from the heart."""
    inside = np.maximum(radiograph.lung_depth["right"], radiograph.lung_depth["left"]) > margin
    inside &= radiograph.heart_depth() < -0.1
    places = np.flatnonzero(inside)
    place = places[int(radiograph.random.integers(places.size))]
    return float(radiograph.x.flat[place]), float(radiograph.y.flat[place])


def _add_nodule(radiograph: Radiograph) -> None:
    x, y = _spot_in_lung(radiograph, 0.09)
    radius = radiograph.random.uniform(0.075, 0.125)
    squared = ((radiograph.x - x) ** 2 + (radiograph.y - y) ** 2) / radius**2 * (1 + 0.10 * radiograph.smooth_noise(8))
    ball = np.sqrt(np.clip(1 - squared, 0, 1))
    radiograph.extra += radiograph.random.uniform(0.38, 0.50) * ball
    radiograph.add_box("nodule", ball > 0.15)


def _add_consolidation(radiograph: Radiograph) -> None:
    x, y = _spot_in_lung(radiograph, 0.12)
    wide, high = radiograph.random.uniform(0.20, 0.30), radiograph.random.uniform(0.20, 0.32)
    hill = np.exp(-(((radiograph.x - x) / wide) ** 2) - ((radiograph.y - y) / high) ** 2)
    ragged = soft_step((hill - 0.42 + 0.16 * radiograph.smooth_noise(9) * np.sqrt(hill)) / 0.18)
    patchy = ragged * (0.82 + 0.18 * radiograph.smooth_noise(20))
    air = np.maximum(radiograph.air("right"), radiograph.air("left"))
    radiograph.extra += radiograph.random.uniform(0.50, 0.62) * np.clip(patchy, 0, 1.2) * air
    radiograph.add_box("consolidation", (ragged > 0.5) & (air > 0.2))


def _add_effusion(radiograph: Radiograph) -> None:
    side = radiograph.random.choice(list(SIDES))
    u = radiograph.x * SIDES[side]
    level = radiograph.anatomy.base_y[side] - radiograph.random.uniform(0.06, 0.30)
    meniscus = level - 0.42 * np.clip(u - 0.36, 0, 1) ** 1.5 + 0.05
    filled = soft_step((radiograph.y - meniscus) / 0.025)
    lung = radiograph.air(side)
    radiograph.extra += 0.62 * filled * lung
    radiograph.add_box("effusion", (filled > 0.5) & (radiograph.lung_depth[side] > 0))


def _add_cardiomegaly(radiograph: Radiograph) -> None:
    radiograph.heart_scale = radiograph.random.uniform(1.38, 1.60)
    radiograph.add_box("cardiomegaly", radiograph.organs() == ORGANS.index("heart"))


def _add_pneumothorax(radiograph: Radiograph) -> None:
    side = radiograph.random.choice(list(SIDES))
    u = radiograph.x * SIDES[side]
    gap = radiograph.random.uniform(0.13, 0.22)
    slope = 1 + 0.55 * np.clip(-radiograph.y, -0.6, 1)
    edge = radiograph.wall() - gap * slope  # where the collapsed lung ends
    lung = radiograph.lung_depth[side]
    free = soft_step((np.maximum(u - edge, radiograph.anatomy.apex_y + gap - radiograph.y)) / 0.008) * (lung > 0)
    pleura = np.exp(-(((u - edge) / 0.012) ** 2)) * (lung > 0.015) * (radiograph.y > radiograph.anatomy.apex_y + gap)
    radiograph.vessel_fade *= 1 - free
    radiograph.extra += 0.10 * pleura - 0.16 * free * radiograph.air(side) + 0.14 * (1 - free) * radiograph.air(side)
    radiograph.add_box("pneumothorax", free > 0.5)


_LESIONS = {
    "nodule": _add_nodule,
    "consolidation": _add_consolidation,
    "effusion": _add_effusion,
    "cardiomegaly": _add_cardiomegaly,
    "pneumothorax": _add_pneumothorax,
}


# ----------------------------------------------------------- diffuse patterns

_CELLS = {"reticular": (16, 20), "honeycomb": (8, 10)}  # meshes across the image
_SPOTS = 16


def _add_pattern(radiograph: Radiograph, pattern: str, random: np.random.Generator) -> None:
    """Attenuation of both lungs together; on average next to none, so that their brightness tells little.

    Drawn by a generator of its own: all else of the image is the same with and without it.
    """
    if pattern == CLEAR:
        return
    strength = random.uniform(0.7, 1.3)
    lungs = np.maximum(radiograph.lung_depth["right"], radiograph.lung_depth["left"])
    texture = _spots(radiograph, random) if pattern == "miliary" else _network(radiograph, random, *_CELLS[pattern])
    radiograph.extra += strength * texture * soft_step(lungs / 0.04)


def _network(radiograph: Radiograph, random: np.random.Generator, fewest: int, most: int) -> NDArray[np.float32]:
    """Lines where smooth noise passes through zero, twice over each other."""
    cells = round(random.uniform(fewest, most))
    lines = sum(np.exp(-((radiograph.smooth_noise(cells, random) / 0.35) ** 2)) for _ in range(2))
    return np.asarray(0.22 * (lines - 0.5), dtype=np.float32)


def _spots(radiograph: Radiograph, random: np.random.Generator) -> NDArray[np.float32]:
    """The peaks of smooth noise."""
    peaks = np.clip(radiograph.smooth_noise(_SPOTS, random) - 0.7, 0, None)
    return np.asarray(0.30 * (peaks - 0.14), dtype=np.float32)


# -------------------------------------------------------------------- phantoms


def make_phantom(seed: int, number: int, size_px: int = 128, patterns: Sequence[str] = (CLEAR,)) -> Phantom:
    """Phantom ``number`` of the archive ``seed``; equal arguments give equal phantoms.

    Args:
        seed: which archive, not negative.
        number: which image of it, not negative.
        size_px: side of the square image, at least 32.
        patterns: of the archive, of which each patient has one.
    """
    assert seed >= 0 and number >= 0 and size_px >= 32
    patient = number // IMAGES_PER_PATIENT
    anatomy = draw_anatomy(np.random.default_rng([seed, 0, patient]))
    random = np.random.default_rng([seed, 1, number])
    findings = _draw_findings(seed, number, random)
    radiograph = Radiograph(anatomy, random, size_px)
    for finding in sorted(findings, key=FINDINGS.index, reverse=True):  # a large heart comes before what lies beside it
        if finding in _LESIONS:
            _LESIONS[finding](radiograph)
    pattern = _draw_pattern(seed, patient, patterns)
    _add_pattern(radiograph, pattern, np.random.default_rng([seed, 4, number]))
    image = np.round(radiograph.expose() * 255).astype(np.uint8)
    return Phantom(
        image=image,
        organs=radiograph.organs(),
        finding=findings[0],
        findings=findings,
        boxes=tuple(radiograph.boxes),
        patient=f"phantom-{seed}-{patient:06d}",
        pattern=pattern,
    )


def _draw_findings(seed: int, number: int, random: np.random.Generator) -> tuple[str, ...]:
    block, place = divmod(number, len(FINDINGS))
    order = np.random.default_rng([seed, 2, block]).permutation(len(FINDINGS))
    primary = FINDINGS[order[place]]
    second = str(random.choice(FINDINGS[1:]))
    if primary == "normal" or second == primary or random.random() >= _SECOND_FINDING:
        return (primary,)
    return (primary, second)


def _draw_pattern(seed: int, patient: int, patterns: Sequence[str]) -> str:
    block, place = divmod(patient, len(patterns))
    order = np.random.default_rng([seed, 3, block]).permutation(len(patterns))
    return patterns[int(order[place])]


def write_archive(
    folder: Path, count: int, seed: int = 0, size_px: int = 128, patterns: Sequence[str] = (CLEAR,)
) -> None:
    """Lays phantoms out as a user's archive, for ``dira-dist shard`` to read::

        images/000000.png   masks/000000.png   labels.csv   boxes.csv

    ``labels.csv`` has the columns image, patient, finding, findings (joined by ``|``), pattern; ``boxes.csv`` image,
    finding, x, y, width, height in pixels; ``masks`` hold indices into :data:`ORGANS`.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    labels: list[Mapping[str, object]] = []
    boxes: list[Mapping[str, object]] = []
    for number in range(count):
        phantom, name = make_phantom(seed, number, size_px, patterns), f"{number:06d}.png"
        Image.fromarray(phantom.image).save(folder / "images" / name, compress_level=3)
        Image.fromarray(phantom.organs).save(folder / "masks" / name, compress_level=3)
        known = {name: getattr(phantom, name) for name in ("patient", "finding", "pattern")}
        labels.append({"image": name, **known, "findings": "|".join(phantom.findings)})
        boxes.extend({"image": name, **vars(box)} for box in phantom.boxes)
    _write_csv(folder / "labels.csv", ("image", "patient", "finding", "findings", "pattern"), labels)
    _write_csv(folder / "boxes.csv", ("image", "finding", "x", "y", "width", "height"), boxes)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
