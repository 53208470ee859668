"""Places objects without overlaps on an occupancy grid over the unit square."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import F64, Pose
from .catalog import CATEGORIES, PAINTS, Category
from .domain import RGB, Range
from .ground import GroundPlan, Patch, Road

_CELLS = 96
_TRIES = 40
Grid = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Placed:
    """A placed object; ``seed`` determines the details of its drawing."""

    category: Category
    pose: Pose
    color: str | None
    rgb: RGB
    seed: int


class Layout:
    """Arrangement of a scene: ground plan, placed objects, and occupied cells."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plan = GroundPlan()
        self.placed: list[Placed] = []
        self.taken: Grid = np.zeros((_CELLS, _CELLS), np.uint8)

    def area(self, outline: F64) -> Grid:
        """Return the grid cells inside a polygon (N, 2), given as fractions of the image, as 0/1."""
        cells = np.zeros((_CELLS, _CELLS), np.uint8)
        cv2.fillPoly(cells, [np.asarray(np.round(outline * _CELLS - 0.5), np.int32)], (1,))
        return cells

    def reserve(self, outline: F64) -> None:
        """Keep a polygon free of objects."""
        self.taken |= self.area(outline)

    def put(self, name: str, pose: Pose, margin: float = 0.015) -> None:
        """Add an object at a fixed pose, even on occupied cells."""
        category = CATEGORIES[name]
        color = str(self.rng.choice(category.paints)) if category.paints else None
        base = np.array(PAINTS[color] if color else category.rgb, np.float64)
        tone = base * self.rng.uniform(0.92, 1.08) + self.rng.uniform(-6, 6, 3)
        rgb: RGB = (float(tone[0]), float(tone[1]), float(tone[2]))
        self.placed.append(Placed(category, pose, color, rgb, int(self.rng.integers(2**31))))
        self.reserve(pose.corners(category.aspect, margin))

    def add(self, layer: Patch | Road) -> None:
        """Add a patch or road on top of the ground plan."""
        self.plan.layers.append(layer)

    def place(
        self,
        name: str,
        *,
        chance: float = 1.0,
        within: F64 | None = None,
        length: Range | None = None,
        angles: tuple[float, ...] | None = None,
        jitter: float = 0.0,
        margin: float = 0.02,
    ) -> None:
        """Place an object on free cells with probability ``chance``; skip it if there is no free position.

        ``within`` is a polygon that contains the object. Failed tries shorten the object slightly. ``angles`` are the
        possible angles (default: any), ``jitter`` the maximum deviation from the chosen one, in radians.
        """
        if chance < 1 and self.rng.random() >= chance:
            return
        category = CATEGORIES[name]
        allowed = None if within is None else self.area(within)
        low, high = (np.zeros(2), np.ones(2)) if within is None else (within.min(axis=0), within.max(axis=0))
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        for attempt in range(_TRIES):
            size = self.rng.uniform(*(length or category.length)) * (1 - 0.15 * attempt / _TRIES)
            angle = self.rng.uniform(0, 2 * math.pi)
            if angles is not None:
                angle = float(self.rng.choice(angles)) + self.rng.uniform(-jitter, jitter)
            x, y = self.rng.uniform(low, high)
            pose = Pose(float(x), float(y), float(size), float(angle))
            corners = pose.corners(category.aspect)
            if corners.min() < 0.012 or corners.max() > 0.988:
                continue
            if allowed is not None and (self.area(corners) & (allowed == 0)).any():
                continue
            if (self.area(pose.corners(category.aspect, margin)) & self.taken).any():
                continue
            self.put(name, pose, margin=0.004)
            return

    def several(
        self,
        name: str,
        count: int,
        *,
        within: F64 | None = None,
        angles: tuple[float, ...] | None = None,
        jitter: float = 0.0,
        scale: float = 1.0,
        margin: float = 0.02,
    ) -> None:
        """Place several objects of one category in contrasting sizes."""
        low, high = CATEGORIES[name].length
        for length in _ladder(self.rng, count, low * scale, high * scale):
            self.place(name, within=within, length=(length, length), angles=angles, jitter=jitter, margin=margin)

    def clutter(self, pose: Pose) -> None:
        """Add a shed or crate without phrases, if the cells are free."""
        corners = pose.corners(0.6, 0.02)
        if corners.min() > 0 and corners.max() < 1 and not (self.area(corners) & self.taken).any():
            self.plan.clutter.append(pose)
            self.reserve(corners)

    def forest(self, count: int, radius: Range, within: F64 | None = None) -> None:
        """Plant up to ``count`` trees on free cells, some of them in groups."""
        allowed = np.ones_like(self.taken) if within is None else self.area(within)
        reach = max(1, math.ceil(radius[1] * 1.3 * _CELLS))
        kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        free = (cv2.dilate(self.taken, kernel) == 0) & (allowed > 0)
        center = self.rng.uniform(0, 1, 2)
        for _ in range(count):
            if self.rng.random() < 0.35:
                center = self.rng.uniform(0, 1, 2)
            x, y = center + self.rng.normal(0, 0.05, 2)
            if 0 <= x < 1 and 0 <= y < 1 and free[int(y * _CELLS), int(x * _CELLS)]:
                self.plan.trees.append((float(x), float(y), float(self.rng.uniform(*radius))))


def strip(center: tuple[float, float], angle: float, width: float, length: float = 3.0) -> F64:
    """Return the corners (4, 2) of a straight band centred on a point."""
    along = np.array([math.cos(angle), math.sin(angle)]) * length / 2
    across = np.array([-math.sin(angle), math.cos(angle)]) * width / 2
    return np.array(center) + np.stack([-along - across, along - across, along + across, -along + across])


def turned(angle: float, along: float, across: float) -> tuple[float, float]:
    """Return a point given in a frame that is centred on the image and rotated by ``angle``."""
    cos, sin = math.cos(angle), math.sin(angle)
    return 0.5 + along * cos - across * sin, 0.5 + along * sin + across * cos


def right_angles(angle: float) -> tuple[float, ...]:
    """Return an angle and its rotations by 90, 180 and 270 degrees."""
    return tuple(angle + quarter * math.pi / 2 for quarter in range(4))


def _ladder(rng: np.random.Generator, count: int, low: float, high: float) -> list[float]:
    """Return lengths in descending order, mostly with a distinct largest and smallest one for size words."""
    if rng.random() < 0.25:
        return sorted(map(float, rng.uniform(low, high, count)), reverse=True)
    ends = [high * rng.uniform(0.94, 1.0), low * rng.uniform(1.0, 1.06)]
    inner = sorted(rng.uniform(low * 1.26, max(high * 0.76, low * 1.28), max(count - 2, 0)), reverse=True)
    return [float(length) for length in [ends[0], *inner, ends[1]][: max(count, 0)]]
