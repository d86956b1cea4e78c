"""The drawing coordinator of the synthetic radiographs: a chest as layers of attenuation, and the detector behind it.

Coordinates are the image's: x to the right, y down, both from -1 to 1. The patient's right lung is on the left.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[Any]  # float32 (H, W); NumPy's stubs lose the type in arithmetic, _plane() sees to it

ORGANS = ("background", "right lung", "left lung", "heart")
SIDES = {"right": -1.0, "left": 1.0}


def _plane(values: Any) -> Plane:
    return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True)
class LesionBox:
    """Where a lesion shows, in pixels of the image: its left upper corner and its size."""

    finding: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Anatomy:
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


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    base = random.uniform(0.44, 0.56)
    return Anatomy(
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


class Radiograph:
    """A radiograph under construction: the plane's coordinates and the layers drawn so far, all float32 (H, W)."""

    def __init__(self, anatomy: Anatomy, random: np.random.Generator, size_px: int) -> None:
        self.anatomy, self.random, self.size_px = anatomy, random, size_px
        self.x, self.y = self._pose()
        self.lung_depth = {side: self._draw_lung(side) for side in SIDES}
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

    def smooth_noise(self, cells: int, random: np.random.Generator | None = None) -> Plane:
        """Unit-variance noise (H, W) that varies over about ``size / cells`` pixels."""
        grid = (random or self.random).standard_normal((cells + 1, cells + 1)).astype(np.float32)
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
        u = self.x * SIDES[side]
        medial = self.anatomy.mediastinum + 0.13 * np.exp(-(((self.y - self.anatomy.apex_y) / 0.16) ** 2))
        dome = self.dome(side)
        edges = (self.wall() - u, (u - medial) * 0.9, (dome - self.y) * 0.9, self.y - self.anatomy.apex_y)
        softest = np.zeros_like(u)
        for edge in edges:  # a smooth minimum, which rounds the apex and the corners
            softest += np.exp(np.minimum(edge * -28, 80))
        return -np.log(softest + 1e-30) / 28

    def dome(self, side: str) -> Plane:
        """Height of the diaphragm at each column."""
        u = self.x * SIDES[side]
        top = self.anatomy.base_y[side]
        return top + 1.55 * np.where(u > 0.34, 1.0, 0.35) * (u - 0.34) ** 2

    def domes(self) -> Plane:
        """Both domes, one passing into the other behind the heart."""
        to_left = soft_step(self.x / 0.10)
        return _plane((1 - to_left) * self.dome("right") + to_left * self.dome("left"))

    def heart_depth(self) -> Plane:
        """One minus the squared radius in the heart's ellipse, positive inside."""
        radius, tilt = self.anatomy.heart_radius * self.heart_scale, self.anatomy.heart_tilt
        x, y = self.x - 0.12 - 0.16 * (self.heart_scale - 1), self.y - self.anatomy.base_y["left"] + 0.20
        along = np.cos(tilt) * x + np.sin(tilt) * y
        across = -np.sin(tilt) * x + np.cos(tilt) * y
        return _plane(1 - (along / (radius * 1.18)) ** 2 - (across / (radius * 0.92)) ** 2)

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
        return _plane(np.minimum(1, np.sqrt(inside * 3.2)) * (0.84 + 0.16 * np.clip(1 - self.x * self.x, 0, 1)))

    def mediastinum(self) -> Plane:
        """Great vessels and heart, without the spine and the windpipe: the bright column and its bulge to the left."""
        half = self.anatomy.mediastinum
        column = soft_step((half - np.abs(self.x - 0.01)) / 0.03)
        knob = np.clip(1 - ((self.x - half * 0.90) / 0.085) ** 2 - ((self.y + 0.22) / 0.10) ** 2, 0, 1)
        heart = np.sqrt(np.clip(self.heart_depth(), 0, 1)) * soft_step((self.dome("left") + 0.05 - self.y) / 0.04)
        return _plane(np.maximum.reduce([0.55 * column, 0.72 * np.sqrt(knob), 0.98 * np.minimum(1, heart * 1.3)]))

    def midline(self) -> Plane:
        """Vertebrae, and the windpipe's shadow of air above them."""
        windpipe = np.exp(-(((self.x + 0.01) / 0.040) ** 2)) * soft_step((-0.20 - self.y) / 0.06)
        discs = 1 + 0.30 * np.cos(self.y * 42)
        return _plane(0.11 * np.exp(-((self.x / 0.085) ** 4)) * discs - 0.11 * windpipe)

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
        cage = soft_step((wall + 0.035 - u) / 0.02) * soft_step((self.y - anatomy.apex_y + 0.02) / 0.03)
        near_wall = 1 + 0.9 * np.exp(-(((wall - u) / 0.05) ** 2))
        far = soft_step((u - 0.10) / 0.03)
        far *= 0.30 + 0.70 * soft_step((self.domes() + 0.02 - self.y) / 0.05)  # little of them shows through the liver
        front = soft_step((u - 0.34) / 0.10) * soft_step((0.40 - self.y) / 0.12)
        return _plane(anatomy.rib_density * cage * near_wall * far * (posterior + 0.5 * anterior * front))

    def shoulders(self) -> Plane:
        """Clavicles and the edges of the shoulder blades."""
        u = np.abs(self.x)
        line = self.anatomy.apex_y + 0.20 - 0.16 * (u - 0.08) + 0.10 * np.sin((u - 0.1) * 5.2)
        clavicle = _bone((self.y - line) / 0.036) * soft_step((u - 0.08) / 0.02) * soft_step((0.80 - u) / 0.03)
        edge = 0.68 + 0.10 * np.cos((self.y + 0.30) * 3.0)
        blade = soft_step((u - edge) / 0.012) * np.exp(-(((u - edge) / 0.16) ** 2)) * soft_step((0.06 - self.y) / 0.05)
        head = np.clip(1 - ((u - 0.93) / 0.15) ** 2 - ((self.y + 0.58) / 0.17) ** 2, 0, 1)
        return 0.20 * clavicle + 0.07 * blade * soft_step((self.y + 0.66) / 0.04) + 0.16 * np.sqrt(head)

    def abdomen(self) -> Plane:
        """Organs below the diaphragm, and often gas in the stomach below its left dome."""
        below = soft_step((self.y - self.domes()) / 0.02)
        liver = 0.10 * soft_step(-self.x / 0.2)
        gas = np.exp(-(((self.x - 0.36) / 0.13) ** 2) - ((self.y - self.anatomy.base_y["left"] - 0.13) / 0.055) ** 2)
        return below * (0.08 + liver) - self.anatomy.stomach_bubble * gas

    def vessels(self) -> Plane:
        """Pulmonary vessels: trees that branch and thin out from the hila."""
        scale = 2 * self.size_px
        canvas = Image.new("L", (scale, scale))
        draw = ImageDraw.Draw(canvas)
        for side in SIDES.values():
            for angle in np.linspace(-1.25, 1.35, 7) + self.random.normal(0, 0.10, 7):
                start = np.array([side * (self.anatomy.mediastinum + 0.05), -0.02 + 0.10 * np.sin(angle)])
                self._branch(draw, start, angle, side, length=0.20, width=0.026, depth=4)
        fine = canvas.resize((self.size_px, self.size_px), Image.Resampling.BOX)
        tree = np.asarray(fine, dtype=np.float32) / 255
        hila = sum(
            np.exp(
                -(((self.x - side * (self.anatomy.mediastinum + 0.05)) / 0.075) ** 2) - ((self.y + 0.02) / 0.15) ** 2
            )
            for side in SIDES.values()
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
        return _plane(np.clip(self._with_marker(grey) + noise, 0, 1))

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


def soft_step(value: Plane) -> Plane:
    return 0.5 * (1 + np.tanh(value))


def _bone(across: Plane) -> Plane:
    """A tube of bone across its width (-1 to 1): bright rims of cortex, softer marrow between them."""
    inside = soft_step((1 - np.abs(across)) / 0.22)
    return _plane(inside * (0.62 + 0.38 * np.abs(np.clip(across, -1, 1)) ** 3))


def _rib_profile(phase: Plane, half_width: float) -> Plane:
    """Ribs of one side by their phase: one at each whole number from 0 to 9, and nothing beyond."""
    number = np.round(phase)
    across = (phase - number) / half_width
    shadow = np.exp(-(((across - 0.5) / 1.3) ** 2)) * 0.35
    return _plane((0.8 * _bone(across) + shadow) * ((number >= 0) & (number <= 9)))


def _sharpen(grey: Plane, size_px: int) -> Plane:
    """The unsharp mask that radiography stations apply: local contrast over a twelfth of the image."""
    small = max(8, size_px // 12)
    coarse = Image.fromarray(grey.astype(np.float32)).resize((small, small), Image.Resampling.BOX)
    blurred = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
    return _plane(grey + 0.35 * (grey - blurred))
