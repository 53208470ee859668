"""Placing objects so that they do not overlap, on an occupancy grid over the unit square."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import F64, Pose
from .catalog import PAINTS, Category, categories
from .domain import RGB, Range
from .ground import GroundPlan, Tree

_CELLS = 96
Grid = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in its place; ``seed`` fixes the details of its drawing."""

    category: Category
    pose: Pose
    color: str | None
    rgb: RGB
    seed: int


class Layout:
    """A composition under construction: what lies where, and which cells are taken."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.catalog = categories()
        self.plan = GroundPlan()
        self.placed: list[Placed] = []
        self.taken: Grid = np.zeros((_CELLS, _CELLS), np.uint8)

    def area(self, outline: F64) -> Grid:
        """Cells inside a polygon (N, 2) given in fractions of the image, as 0/1."""
        cells = np.zeros((_CELLS, _CELLS), np.uint8)
        cv2.fillPoly(cells, [np.asarray(np.round(outline * _CELLS - 0.5), np.int32)], (1,))
        return cells

    def reserve(self, outline: F64) -> None:
        """Keep a polygon free of objects."""
        self.taken |= self.area(outline)

    def put(self, name: str, pose: Pose, color: str | None = None, margin: float = 0.015) -> None:
        """Add an object at a fixed pose, whatever is there."""
        category = self.catalog[name]
        if color is None and category.paints:
            color = str(self.rng.choice(category.paints))
        base = np.array(PAINTS[color] if color else category.rgb, np.float64)
        tone = base * self.rng.uniform(0.92, 1.08) + self.rng.uniform(-6, 6, 3)
        rgb: RGB = (float(tone[0]), float(tone[1]), float(tone[2]))
        self.placed.append(Placed(category, pose, color, rgb, int(self.rng.integers(2**31))))
        self.reserve(pose.corners(category.aspect, margin))

    def place(
        self,
        name: str,
        *,
        within: F64 | None = None,
        color: str | None = None,
        length: Range | None = None,
        angles: tuple[float, ...] | None = None,
        jitter: float = 0.0,
        margin: float = 0.02,
        tries: int = 40,
    ) -> bool:
        """Find a free place and put an object there.

        Args:
            name: Category.
            within: Polygon the whole object must lie in; the image if None.
            color: Colour word; one of the category's if None.
            length: Range of lengths; the category's own if None. It shrinks a little as tries fail.
            angles: Angles to choose from; any if None.
            jitter: Spread added to a chosen angle, radians.
            margin: Free space around the object.
            tries: How many places to try.

        Returns:
            Whether a place was found.
        """
        category = self.catalog[name]
        allowed = None if within is None else self.area(within)
        low, high = (np.zeros(2), np.ones(2)) if within is None else (within.min(axis=0), within.max(axis=0))
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        for attempt in range(tries):
            size = self.rng.uniform(*(length or category.length)) * (1 - 0.15 * attempt / tries)
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
            self.put(name, pose, color, margin=0.004)
            return True
        return False

    def forest(self, count: int, radius: Range, within: F64 | None = None) -> None:
        """Plant up to ``count`` trees where nothing else is, some of them in groups."""
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
                self.plan.trees.append(Tree(float(x), float(y), float(self.rng.uniform(*radius))))


def strip(x: float, y: float, angle: float, width: float, length: float = 3.0) -> F64:
    """Corners (4, 2) of a straight band centred on a point."""
    along = np.array([math.cos(angle), math.sin(angle)]) * length / 2
    across = np.array([-math.sin(angle), math.cos(angle)]) * width / 2
    center = np.array([x, y])
    return np.stack(
        [center - along - across, center + along - across, center + along + across, center - along + across]
    )
