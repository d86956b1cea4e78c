"""Synthetic chest radiographs: anatomy drawn as layers of attenuation, with lesions whose place and kind are known.

They stand in for an archive where there is none: the quickstart, tests and demonstrations. A phantom is a function of
``(seed, number)`` alone. Two neighbouring numbers are two images of one patient: the same anatomy, another exposure,
another pose, their own findings. The primary findings are balanced in every block of six numbers.

Coordinates are the image's: x to the right, y down, both from -1 to 1. The patient's right lung is on the left.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.float32]

FINDINGS = ("normal", "nodule", "consolidation", "effusion", "cardiomegaly", "pneumothorax")
ORGANS = ("background", "right lung", "left lung", "heart")
IMAGES_PER_PATIENT = 2
_SECOND_FINDING = 0.15
_SIDES = {"right": -1.0, "left": 1.0}


@dataclass(frozen=True)
class LesionBox:
    """Where a lesion shows, in pixels of the image: its left upper corner and its size."""

    finding: str
    x: int
    y: int
    width: int
    height: int


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
    """

    image: NDArray[np.uint8]
    organs: NDArray[np.uint8]
    finding: str
    findings: tuple[str, ...]
    boxes: tuple[LesionBox, ...]
    patient: str


@dataclass(frozen=True)
class _Anatomy:
    """What stays the same between the images of one patient; lengths in units of half the image's side."""

    width: float
    apex_y: float
    base_y: dict[str, float]
    mediastinum: float
    heart_radius: float
    heart_tilt: float
    rib_spacing: float
    rib_slope: float
    rib_density: float
    soft_tissue: float
    stomach_bubble: float


def _draw_anatomy(random: np.random.Generator) -> _Anatomy:
    base = random.uniform(0.44, 0.56)
    return _Anatomy(
        width=random.uniform(0.70, 0.82),
        apex_y=random.uniform(-0.86, -0.76),
        base_y={"right": base - random.uniform(0.02, 0.07), "left": base},
        mediastinum=random.uniform(0.11, 0.16),
        heart_radius=random.uniform(0.27, 0.32),
        heart_tilt=random.uniform(0.45, 0.75),
        rib_spacing=random.uniform(0.150, 0.180),
        rib_slope=random.uniform(0.20, 0.36),
        rib_density=random.uniform(0.12, 0.17),
        soft_tissue=random.uniform(0.8, 1.1),
        stomach_bubble=float(random.random() < 0.6) * random.uniform(0.15, 0.35),
    )


class _Radiograph:
    """A radiograph under construction: the plane's coordinates and the layers drawn so far, all float32 (H, W)."""

    def __init__(self, anatomy: _Anatomy, random: np.random.Generator, size_px: int) -> None:
        self.anatomy, self.random, self.size_px = anatomy, random, size_px
        self.x, self.y = self._pose()
        self.lung_depth = {side: self._draw_lung(side) for side in _SIDES}
        self.heart_scale = 1.0
        self.extra = np.zeros_like(self.x)  # attenuation of lesions
        self.vessel_fade = np.ones_like(self.x)
        self.boxes: list[LesionBox] = []

    def _pose(self) -> tuple[Plane, Plane]:
        axis = (np.arange(self.size_px, dtype=np.float32) + 0.5) * (2 / self.size_px) - 1
        x, y = np.meshgrid(axis, axis)
        angle, scale = self.random.normal(0, 0.03), self.random.uniform(0.95, 1.10)
        x, y = x - self.random.normal(0, 0.03), y - self.random.normal(0, 0.03)
        turned_x = (np.cos(angle) * x - np.sin(angle) * y) * scale
        turned_y = (np.sin(angle) * x + np.cos(angle) * y) * scale * self.random.uniform(0.96, 1.06)
        bend = self.smooth_noise(3) * 0.02, self.smooth_noise(3) * 0.02
        return (turned_x + bend[0]).astype(np.float32), (turned_y + bend[1]).astype(np.float32)

    def smooth_noise(self, cells: int) -> Plane:
        """Unit-variance noise (H, W) that varies over about ``size / cells`` pixels."""
        grid = self.random.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        resized = Image.fromarray(grid).resize((self.size_px, self.size_px), Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.float32)

    def add_box(self, finding: str, where: NDArray[np.bool_]) -> None:
        """Notes a lesion by the pixels where it shows; nothing when it shows nowhere."""
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        if rows.size:
            left, top = int(columns[0]), int(rows[0])
            box = LesionBox(finding, left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
            self.boxes.append(box)

    # ---------------------------------------------------------------- shapes

    def wall(self) -> Plane:
        """Half the width of the rib cage at each height."""
        anatomy = self.anatomy
        down = (self.y - 0.45) / (0.45 - anatomy.apex_y + 0.04)
        return anatomy.width * np.sqrt(np.clip(1 - down * down, 0, 1))

    def _draw_lung(self, side: str) -> Plane:
        """About the distance to the nearest edge of a lung, positive inside it."""
        u = self.x * _SIDES[side]
        medial = self.anatomy.mediastinum + 0.13 * np.exp(-(((self.y - self.anatomy.apex_y) / 0.16) ** 2))
        dome = self.dome(side)
        edges = (self.wall() - u, (u - medial) * 0.9, (dome - self.y) * 0.9, self.y - self.anatomy.apex_y)
        softest = np.zeros_like(u)
        for edge in edges:  # a smooth minimum, which rounds the apex and the corners
            softest += np.exp(np.minimum(edge * -28, 80))
        return -np.log(softest + 1e-30) / 28

    def dome(self, side: str) -> Plane:
        """Height of the diaphragm at each column."""
        u = self.x * _SIDES[side]
        top = self.anatomy.base_y[side]
        return top + 1.55 * np.where(u > 0.34, 1.0, 0.35) * (u - 0.34) ** 2

    def domes(self) -> Plane:
        """Both domes, one passing into the other behind the heart."""
        to_left = _soft_step(self.x / 0.10)
        return (1 - to_left) * self.dome("right") + to_left * self.dome("left")

    def heart_depth(self) -> Plane:
        """One minus the squared radius in the heart's ellipse, positive inside."""
        radius, tilt = self.anatomy.heart_radius * self.heart_scale, self.anatomy.heart_tilt
        x, y = self.x - 0.12 - 0.16 * (self.heart_scale - 1), self.y - self.anatomy.base_y["left"] + 0.20
        along = np.cos(tilt) * x + np.sin(tilt) * y
        across = -np.sin(tilt) * x + np.cos(tilt) * y
        return 1 - (along / (radius * 1.18)) ** 2 - (across / (radius * 0.92)) ** 2

    # ---------------------------------------------------------------- layers

    def air(self, side: str) -> Plane:
        """Share of the beam's way through a lung, 0 to 1."""
        rim = np.clip(self.lung_depth[side] / 0.30, 0, 1)
        return np.sqrt(1 - (1 - rim) ** 2)

    def body(self) -> Plane:
        """Soft tissue: trunk, shoulders and neck."""
        slope = 0.42 / (1 + np.exp(-(self.y + 0.80) / 0.07)) + 0.36 / (1 + np.exp(-(self.y + 0.60) / 0.05))
        half = 0.22 + slope + 0.05 * np.clip(self.y, -1, 1)
        inside = np.clip(1 - np.abs(self.x) / half, 0, 1)
        return np.minimum(1, np.sqrt(inside * 3.2)) * (0.84 + 0.16 * np.clip(1 - self.x * self.x, 0, 1))

    def mediastinum(self) -> Plane:
        """Great vessels and heart, without the spine and the windpipe: the bright column and its bulge to the left."""
        half = self.anatomy.mediastinum
        column = _soft_step((half - np.abs(self.x - 0.01)) / 0.03)
        knob = np.clip(1 - ((self.x - half * 0.90) / 0.085) ** 2 - ((self.y + 0.22) / 0.10) ** 2, 0, 1)
        heart = np.sqrt(np.clip(self.heart_depth(), 0, 1)) * _soft_step((self.dome("left") + 0.05 - self.y) / 0.04)
        return np.maximum.reduce([0.55 * column, 0.72 * np.sqrt(knob), 0.98 * np.minimum(1, heart * 1.3)])

    def midline(self) -> Plane:
        """Vertebrae, and the windpipe's shadow of air above them."""
        windpipe = np.exp(-(((self.x + 0.01) / 0.040) ** 2)) * _soft_step((-0.20 - self.y) / 0.06)
        discs = 1 + 0.30 * np.cos(self.y * 42)
        return 0.11 * np.exp(-((self.x / 0.085) ** 4)) * discs - 0.11 * windpipe

    def ribs(self) -> Plane:
        """Posterior ribs, falling outwards, and fainter anterior ribs, falling inwards, as two periodic phases."""
        anatomy, u = self.anatomy, np.abs(self.x)
        wall = self.wall()
        reach = np.clip(u / np.maximum(wall, 0.05), 0, 1.2)
        fall = anatomy.rib_slope * (reach**2.6) - 0.10 * reach * (1 - reach)
        stretch = 1 + 0.18 * self.y
        posterior = _rib_profile((self.y - fall - anatomy.apex_y) / (anatomy.rib_spacing * stretch), 0.27)
        low = anatomy.rib_slope * 1.05 + 0.34 * np.clip(1 - reach, 0, 1) ** 1.15
        anterior = _rib_profile((self.y - low - anatomy.apex_y) / (anatomy.rib_spacing * stretch), 0.31)
        cage = _soft_step((wall + 0.035 - u) / 0.02) * _soft_step((self.y - anatomy.apex_y + 0.02) / 0.03)
        near_wall = 1 + 0.9 * np.exp(-(((wall - u) / 0.05) ** 2))
        far = _soft_step((u - 0.10) / 0.03)
        far *= 0.30 + 0.70 * _soft_step((self.domes() + 0.02 - self.y) / 0.05)  # little of them shows through the liver
        front = _soft_step((u - 0.34) / 0.10) * _soft_step((0.40 - self.y) / 0.12)
        return anatomy.rib_density * cage * near_wall * far * (posterior + 0.5 * anterior * front)

    def shoulders(self) -> Plane:
        """Clavicles and the edges of the shoulder blades."""
        u = np.abs(self.x)
        line = self.anatomy.apex_y + 0.20 - 0.16 * (u - 0.08) + 0.10 * np.sin((u - 0.1) * 5.2)
        clavicle = _bone((self.y - line) / 0.036) * _soft_step((u - 0.08) / 0.02) * _soft_step((0.80 - u) / 0.03)
        edge = 0.68 + 0.10 * np.cos((self.y + 0.30) * 3.0)
        blade = (
            _soft_step((u - edge) / 0.012) * np.exp(-(((u - edge) / 0.16) ** 2)) * _soft_step((0.06 - self.y) / 0.05)
        )
        head = np.clip(1 - ((u - 0.93) / 0.15) ** 2 - ((self.y + 0.58) / 0.17) ** 2, 0, 1)
        return 0.20 * clavicle + 0.07 * blade * _soft_step((self.y + 0.66) / 0.04) + 0.16 * np.sqrt(head)

    def abdomen(self) -> Plane:
        """Organs below the diaphragm, and often gas in the stomach below its left dome."""
        below = _soft_step((self.y - self.domes()) / 0.02)
        liver = 0.10 * _soft_step(-self.x / 0.2)
        gas = np.exp(-(((self.x - 0.36) / 0.13) ** 2) - ((self.y - self.anatomy.base_y["left"] - 0.13) / 0.055) ** 2)
        return below * (0.08 + liver) - self.anatomy.stomach_bubble * gas

    def vessels(self) -> Plane:
        """Pulmonary vessels: trees that branch and thin out from the hila."""
        scale = 2 * self.size_px
        canvas = Image.new("L", (scale, scale))
        draw = ImageDraw.Draw(canvas)
        for side in _SIDES.values():
            for angle in np.linspace(-1.25, 1.35, 7) + self.random.normal(0, 0.10, 7):
                start = np.array([side * (self.anatomy.mediastinum + 0.05), -0.02 + 0.10 * np.sin(angle)])
                self._branch(draw, start, angle, side, length=0.20, width=0.026, depth=4)
        fine = canvas.resize((self.size_px, self.size_px), Image.Resampling.BOX)
        tree = np.asarray(fine, dtype=np.float32) / 255
        hila = sum(
            np.exp(
                -(((self.x - side * (self.anatomy.mediastinum + 0.05)) / 0.075) ** 2) - ((self.y + 0.02) / 0.15) ** 2
            )
            for side in _SIDES.values()
        )
        return (0.15 * tree + 0.15 * hila) * self.vessel_fade

    def _branch(
        self,
        draw: ImageDraw.ImageDraw,
        start: Plane,
        angle: float,
        side: float,
        length: float,
        width: float,
        depth: int,
    ) -> None:
        turn = self.random.normal(0, 0.12)
        end = start + length * np.array([side * np.cos(angle + turn), np.sin(angle + turn)])
        half = self.size_px  # the canvas is twice the image's size
        ends = [tuple((float(v) + 1) * half for v in point) for point in (start, end)]
        shade = int(255 * min(1.0, 0.25 + width * 24))
        draw.line(ends, fill=shade, width=max(1, round(width * half)))
        if depth > 1:
            for fork in (-0.34, 0.34):
                bend = angle + turn + fork * self.random.uniform(0.5, 1.4)
                self._branch(draw, end, bend, side, length * 0.80, width * 0.62, depth - 1)

    # ---------------------------------------------------------------- picture

    def expose(self) -> Plane:
        """All layers through the detector: attenuation to grey values 0 to 1, with blur and noise."""
        air = np.maximum(self.air("right"), self.air("left"))
        body = self.body()
        centre = self.mediastinum()
        chest = (0.66 + 0.14 * self.anatomy.soft_tissue) * body + 0.24 * centre + self.midline() * body
        chest += air * (1 - 0.85 * np.minimum(1, centre * 1.25)) * (-0.56 + self.vessels())
        chest += 0.02 * air * self.smooth_noise(self.size_px // 5) + self.extra * (1 - 0.8 * centre)
        chest += (self.ribs() + self.shoulders() + self.abdomen()) * np.minimum(1, body * 1.4)
        high = 1.20 + self.random.normal(0, 0.05)
        grey = np.clip(chest / high, 0, 1.2) ** self.random.uniform(0.85, 1.25)
        grey = _sharpen(grey, self.size_px) * self.random.uniform(0.90, 1.02)
        noise = self.random.standard_normal(grey.shape, dtype=np.float32) * np.sqrt(np.clip(grey, 0.05, 1)) * 0.014
        return np.clip(self._with_marker(grey) + noise, 0, 1)

    def _with_marker(self, grey: Plane) -> Plane:
        """The lead letter that marks the patient's left side."""
        unit = self.size_px / 40
        left, top = self.size_px - int(5 * unit), int(self.random.uniform(1.5, 5) * unit)
        canvas = Image.new("L", (self.size_px, self.size_px))
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((left, top, left + unit * 0.5, top + 3 * unit), fill=255)
        draw.rectangle((left, top + 2.5 * unit, left + 1.8 * unit, top + 3 * unit), fill=255)
        return np.maximum(grey, np.asarray(canvas, dtype=np.float32) / 255)

    def organs(self) -> NDArray[np.uint8]:
        """The label map of :data:`ORGANS`; the heart lies over the lungs."""
        labels = np.zeros(self.x.shape, np.uint8)
        for number, side in ((1, "right"), (2, "left")):
            labels[self.lung_depth[side] > 0] = number
        labels[(self.heart_depth() > 0) & (self.y < self.dome("left") + 0.06)] = 3
        return labels


def _soft_step(value: Plane) -> Plane:
    return 0.5 * (1 + np.tanh(value))


def _bone(across: Plane) -> Plane:
    """A tube of bone across its width (-1 to 1): bright rims of cortex, softer marrow between them."""
    inside = _soft_step((1 - np.abs(across)) / 0.22)
    return inside * (0.62 + 0.38 * np.abs(np.clip(across, -1, 1)) ** 3)


def _rib_profile(phase: Plane, half_width: float) -> Plane:
    """Ribs of one side by their phase: one at each whole number from 0 to 9, and nothing beyond."""
    number = np.round(phase)
    across = (phase - number) / half_width
    shadow = np.exp(-(((across - 0.5) / 1.3) ** 2)) * 0.35
    return (0.8 * _bone(across) + shadow) * ((number >= 0) & (number <= 9))


def _sharpen(grey: Plane, size_px: int) -> Plane:
    """The unsharp mask that radiography stations apply: local contrast over a twelfth of the image."""
    small = max(8, size_px // 12)
    coarse = Image.fromarray(grey.astype(np.float32)).resize((small, small), Image.Resampling.BOX)
    blurred = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
    return grey + 0.35 * (grey - blurred)


# -------------------------------------------------------------------- lesions


def _spot_in_lung(radiograph: _Radiograph, margin: float) -> tuple[float, float]:
    """A random place at least ``margin`` inside a lung and away from the heart."""
    inside = np.maximum(radiograph.lung_depth["right"], radiograph.lung_depth["left"]) > margin
    inside &= radiograph.heart_depth() < -0.1
    places = np.flatnonzero(inside)
    place = places[int(radiograph.random.integers(places.size))]
    return float(radiograph.x.flat[place]), float(radiograph.y.flat[place])


def _add_nodule(radiograph: _Radiograph) -> None:
    x, y = _spot_in_lung(radiograph, 0.09)
    radius = radiograph.random.uniform(0.065, 0.115)
    squared = ((radiograph.x - x) ** 2 + (radiograph.y - y) ** 2) / radius**2 * (1 + 0.10 * radiograph.smooth_noise(8))
    ball = np.sqrt(np.clip(1 - squared, 0, 1))
    radiograph.extra += radiograph.random.uniform(0.32, 0.44) * ball
    radiograph.add_box("nodule", ball > 0.15)


def _add_consolidation(radiograph: _Radiograph) -> None:
    x, y = _spot_in_lung(radiograph, 0.12)
    wide, high = radiograph.random.uniform(0.20, 0.30), radiograph.random.uniform(0.20, 0.32)
    hill = np.exp(-(((radiograph.x - x) / wide) ** 2) - ((radiograph.y - y) / high) ** 2)
    ragged = _soft_step((hill - 0.42 + 0.16 * radiograph.smooth_noise(9) * np.sqrt(hill)) / 0.18)
    patchy = ragged * (0.82 + 0.18 * radiograph.smooth_noise(20))
    air = np.maximum(radiograph.air("right"), radiograph.air("left"))
    radiograph.extra += radiograph.random.uniform(0.50, 0.62) * np.clip(patchy, 0, 1.2) * air
    radiograph.add_box("consolidation", (ragged > 0.5) & (air > 0.2))


def _add_effusion(radiograph: _Radiograph) -> None:
    side = radiograph.random.choice(list(_SIDES))
    u = radiograph.x * _SIDES[side]
    level = radiograph.anatomy.base_y[side] - radiograph.random.uniform(0.06, 0.30)
    meniscus = level - 0.42 * np.clip(u - 0.36, 0, 1) ** 1.5 + 0.05
    filled = _soft_step((radiograph.y - meniscus) / 0.025)
    lung = radiograph.air(side)
    radiograph.extra += 0.62 * filled * lung
    radiograph.add_box("effusion", (filled > 0.5) & (radiograph.lung_depth[side] > 0))


def _add_cardiomegaly(radiograph: _Radiograph) -> None:
    radiograph.heart_scale = radiograph.random.uniform(1.38, 1.60)
    radiograph.add_box("cardiomegaly", radiograph.organs() == ORGANS.index("heart"))


def _add_pneumothorax(radiograph: _Radiograph) -> None:
    side = radiograph.random.choice(list(_SIDES))
    u = radiograph.x * _SIDES[side]
    gap = radiograph.random.uniform(0.13, 0.22)
    slope = 1 + 0.55 * np.clip(-radiograph.y, -0.6, 1)
    edge = radiograph.wall() - gap * slope  # where the collapsed lung ends
    lung = radiograph.lung_depth[side]
    free = _soft_step((np.maximum(u - edge, radiograph.anatomy.apex_y + gap - radiograph.y)) / 0.008) * (lung > 0)
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


# -------------------------------------------------------------------- phantoms


def make_phantom(seed: int, number: int, size_px: int = 128) -> Phantom:
    """Phantom ``number`` of the archive ``seed``; equal arguments give equal phantoms.

    Args:
        seed: which archive, not negative.
        number: which image of it, not negative.
        size_px: side of the square image, at least 32.
    """
    assert seed >= 0 and number >= 0 and size_px >= 32
    patient = number // IMAGES_PER_PATIENT
    anatomy = _draw_anatomy(np.random.default_rng([seed, 0, patient]))
    random = np.random.default_rng([seed, 1, number])
    findings = _draw_findings(seed, number, random)
    radiograph = _Radiograph(anatomy, random, size_px)
    for finding in sorted(findings, key=FINDINGS.index, reverse=True):  # a large heart comes before what lies beside it
        if finding in _LESIONS:
            _LESIONS[finding](radiograph)
    image = np.round(radiograph.expose() * 255).astype(np.uint8)
    return Phantom(
        image=image,
        organs=radiograph.organs(),
        finding=findings[0],
        findings=findings,
        boxes=tuple(radiograph.boxes),
        patient=f"phantom-{seed}-{patient:06d}",
    )


def _draw_findings(seed: int, number: int, random: np.random.Generator) -> tuple[str, ...]:
    block, place = divmod(number, len(FINDINGS))
    order = np.random.default_rng([seed, 2, block]).permutation(len(FINDINGS))
    primary = FINDINGS[order[place]]
    second = str(random.choice(FINDINGS[1:]))
    if primary == "normal" or second == primary or random.random() >= _SECOND_FINDING:
        return (primary,)
    return (primary, second)


def write_archive(folder: Path, count: int, seed: int = 0, size_px: int = 128) -> None:
    """Lays phantoms out as a user's archive, for ``dira-dist shard`` to read::

        images/000000.png   masks/000000.png   labels.csv   boxes.csv

    ``labels.csv`` has the columns image, patient, finding, findings (joined by ``|``); ``boxes.csv`` image, finding, x,
    y, width, height in pixels; ``masks`` hold indices into :data:`ORGANS`.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    labels: list[Mapping[str, object]] = []
    boxes: list[Mapping[str, object]] = []
    for number in range(count):
        phantom, name = make_phantom(seed, number, size_px), f"{number:06d}.png"
        Image.fromarray(phantom.image).save(folder / "images" / name, compress_level=3)
        Image.fromarray(phantom.organs).save(folder / "masks" / name, compress_level=3)
        findings = "|".join(phantom.findings)
        labels.append({"image": name, "patient": phantom.patient, "finding": phantom.finding, "findings": findings})
        boxes.extend({"image": name, **vars(box)} for box in phantom.boxes)
    _write_csv(folder / "labels.csv", ("image", "patient", "finding", "findings"), labels)
    _write_csv(folder / "boxes.csv", ("image", "finding", "x", "y", "width", "height"), boxes)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
