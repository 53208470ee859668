"""Paints the ground of a scene: noisy materials, patches, roads and trees, in fractions of the image."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from .canvas import F32, F64, Brush, Canvas, Pose, shade
from .domain import Look

Window = tuple[slice, slice]

_GRAIN = {"grass": 1.0, "soil": 1.1, "concrete": 0.45, "asphalt": 0.5, "water": 0.3, "fallow": 0.9, "tree": 1.3}


@dataclass(frozen=True, slots=True)
class Patch:
    """A polygon (N, 2) of one material; ``rows`` is the angle of plough lines, if any."""

    material: str
    outline: F64
    rows: float | None = None
    feather: float = 0.0


@dataclass(frozen=True, slots=True)
class Road:
    """A polyline (N, 2) of constant width."""

    path: F64
    width: float
    material: str = "asphalt"
    marked: bool = True


@dataclass(slots=True)
class GroundPlan:
    """Layers below the objects, in drawing order."""

    base: str = "grass"
    layers: list[Patch | Road] = field(default_factory=list)
    trees: list[tuple[float, float, float]] = field(default_factory=list)  # centre and radius
    clutter: list[Pose] = field(default_factory=list)  # small sheds and crates without phrases


class GroundPainter:
    """Draws a plan in the colours of a look. Equal generator states produce the same ground at every size."""

    def __init__(self, look: Look, size: int, rng: np.random.Generator) -> None:
        self.look = look
        self.size = size
        self.rng = rng
        amount = rng.uniform(*look.texture)
        octaves = [self._noise(cells) for cells in (3, 7, 16, 40, 96)]
        coarse = octaves[0] * 0.5 + octaves[1] * 0.35 + octaves[2] * 0.3
        fine = octaves[2] * 0.25 + octaves[3] * 0.45 + octaves[4] * 0.55
        share = look.texture_scale
        self.texture = amount * (coarse * share + fine * (1 - share)) * 0.105
        self.tint = octaves[1] * 0.6 + octaves[2] * 0.4
        self.smooth = octaves[0] * 0.6 + octaves[1] * 0.4
        self.fine = octaves[4] * 0.03
        if look.ripples > 0:
            self.texture += look.ripples / 160 * self._ripples()

    def _noise(self, cells: int) -> F32:
        grid = self.rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
        return np.asarray(cv2.resize(grid, (self.size, self.size), interpolation=cv2.INTER_CUBIC), np.float32)

    def _ripples(self) -> F32:
        """Return wavy parallel ridges, as on wind-blown sand."""
        y, x = self._along((slice(None), slice(None)))
        turn, pitch = self.rng.uniform(0, math.pi), self.rng.uniform(14, 30)
        phase = x * math.cos(turn) + y * math.sin(turn)
        return np.asarray(np.sin(2 * math.pi * pitch * phase + 2.2 * self.smooth), np.float32)

    def _pick(self, material: str) -> F32:
        choices = self.look.ground[material]
        base = np.array(choices[self.rng.integers(len(choices))], np.float32)
        return np.asarray(base * self.rng.uniform(0.94, 1.06), np.float32)

    def material(self, name: str, window: Window = (slice(None), slice(None))) -> F32:
        """Return one material over a window of the image, (h, w, 3) float32."""
        base = self._pick(name)
        if name == "water":
            pattern = 0.06 * self.smooth[window] + 0.7 * self.fine[window]
        else:
            pattern = self.texture[window] * _GRAIN[name]
        image = base * (1 + pattern[..., None])
        if name in ("grass", "fallow", "soil"):  # dry and lush spots differ in hue, not only in brightness
            image += self.tint[window][..., None] * np.array([5.0, 1.5, -2.5], np.float32)
        return np.asarray(image, np.float32)

    def paint(self, plan: GroundPlan) -> F32:
        """Paint the plan's base, patches and roads as radiance (size, size, 3) float32."""
        image = self.material(plan.base)
        for layer in plan.layers:
            if isinstance(layer, Patch):
                self._patch(image, layer)
            else:
                self._road(image, layer)
        return image

    def _window(self, points: F64, margin: float) -> Window | None:
        """Return the window of the image that contains a shape and a margin; None if it is outside."""
        low = np.clip(np.floor((points.min(axis=0) - margin) * self.size) - 2, 0, self.size).astype(int)
        high = np.clip(np.ceil((points.max(axis=0) + margin) * self.size) + 2, 0, self.size).astype(int)
        if (high <= low).any():
            return None
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    def _coverage(self, points: F64, window: Window, thickness: float | None = None) -> F32:
        """Return the anti-aliased coverage of a polygon, or of a polyline with a thickness, in a window."""
        factor = 2
        rows, cols = window
        height, width = rows.stop - rows.start, cols.stop - cols.start
        drawn = np.zeros((height * factor, width * factor), np.uint8)
        local = (points * self.size - (cols.start, rows.start)) * factor - 0.5
        fixed = [np.asarray(np.round(local * 16), np.int32)]
        if thickness is None:
            cv2.fillPoly(drawn, fixed, (255,), cv2.LINE_8, 4)
        else:
            cv2.polylines(drawn, fixed, False, (255,), max(1, round(thickness * self.size * factor)), cv2.LINE_8, 4)
        small = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(small.astype(np.float32) / 255, np.float32)

    def _patch(self, image: F32, patch: Patch) -> None:
        window = self._window(patch.outline, 3 * patch.feather)
        if window is None:
            return
        cover = self._coverage(patch.outline, window)
        if patch.feather > 0:
            cover = cv2.GaussianBlur(cover, (0, 0), patch.feather * self.size)
        color = self.material(patch.material, window)
        if patch.rows is not None:
            y, x = self._along(window)
            phase = x * math.cos(patch.rows) + y * math.sin(patch.rows)
            color *= (1 + np.float32(0.05) * np.sin(2 * math.pi * 34 * phase))[..., None]
        part = image[window]
        part += (color - part) * cover[..., None]

    def _road(self, image: F32, road: Road) -> None:
        window = self._window(road.path, road.width)
        if window is None:
            return
        part = image[window]
        part *= 1 - np.float32(0.14) * self._coverage(road.path, window, road.width * 1.16)[..., None]
        cover = self._coverage(road.path, window, road.width)
        part += (self.material(road.material, window) - part) * cover[..., None]
        if road.marked:
            dashes = self._coverage(road.path, window, 0.006) * cover
            y, x = self._along(window)
            dashes *= ((y + 0.73 * x) * 22 % 1.0) < 0.55
            part += (np.float32(214) - part) * (np.float32(0.8) * dashes[..., None])

    def _along(self, window: Window) -> tuple[F32, F32]:
        """Return coordinates of a window's pixels as fractions of the image: a column of y and a row of x."""
        along = (np.arange(self.size, dtype=np.float32) + np.float32(0.5)) / np.float32(self.size)
        return along[window[0], None], along[None, window[1]]

    def plant(self, canvas: Canvas, plan: GroundPlan) -> None:
        """Draw trees and clutter with their shadows; call this before drawing objects."""
        crown = self._pick("tree")
        for x, y, radius in plan.trees:
            red, green, blue = map(float, crown * self.rng.uniform(0.8, 1.2))
            rgb = (red, green, blue)
            brush = Brush(Pose(x, y, radius * 2, self.rng.uniform(0, 6.28)), 1.0, self.size, rgb)
            brush.disc(0, 0, 0.8, shade(rgb, 0.85), 0.74)
            for turn in np.arange(0, 6.28, 1.257):
                reach = self.rng.uniform(0.3, 0.5)
                brush.disc(reach * np.cos(turn), reach * np.sin(turn), 0.45, shade(rgb, self.rng.uniform(0.8, 1.1)))
            brush.disc(-0.2 * canvas.sun[0], -0.2 * canvas.sun[1], 0.4, shade(rgb, 1.25), solid=False)
            canvas.paint(brush, radius * 0.7, self.texture)
        for pose in plan.clutter:
            grey = float(self.rng.uniform(110, 190))
            brush = Brush(pose, 0.6, self.size, (grey, grey, grey * 0.96))
            brush.rect(-1, -0.6, 1, 0.6, (grey, grey, grey * 0.96))
            canvas.paint(brush, pose.length * 0.2, self.fine)
