"""Habits of arrangement that the kinds of scene share."""

import math

import numpy as np

from .canvas import F64, Pose
from .layout import Layout


def turned(angle: float, along: float, across: float) -> tuple[float, float]:
    """A point in a frame centred on the image and turned by ``angle``."""
    cos, sin = math.cos(angle), math.sin(angle)
    return 0.5 + along * cos - across * sin, 0.5 + along * sin + across * cos


def right_angles(angle: float) -> tuple[float, ...]:
    """An angle and its three quarter turns."""
    return tuple(angle + quarter * math.pi / 2 for quarter in range(4))


def _ladder(rng: np.random.Generator, count: int, low: float, high: float) -> list[float]:
    """Lengths in falling order. Mostly one stands out as the largest, one as the smallest: size words need that."""
    if rng.random() < 0.25:
        return sorted(map(float, rng.uniform(low, high, count)), reverse=True)
    ends = [high * rng.uniform(0.94, 1.0), low * rng.uniform(1.0, 1.06)]
    inner = sorted(rng.uniform(low * 1.26, max(high * 0.76, low * 1.28), max(count - 2, 0)), reverse=True)
    return [float(length) for length in [ends[0], *inner, ends[1]][: max(count, 0)]]


def several(layout: Layout, name: str, count: int, within: F64 | None = None, angles: tuple[float, ...] | None = None,
             jitter: float = 0.0, scale: float = 1.0, margin: float = 0.02) -> None:  # fmt: skip
    """Several objects of one category in contrasting sizes; colours repeat now and then."""
    category = layout.catalog[name]
    low, high = category.length
    for length in _ladder(layout.rng, count, low * scale, high * scale):
        layout.place(name, within=within, length=(length, length), angles=angles, jitter=jitter, margin=margin)


def away(rng: np.random.Generator) -> float:
    """A coordinate off the image's border."""
    return float(rng.uniform(0.05, 0.95))


def clutter(layout: Layout, pose: Pose) -> None:
    """A shed or crate nobody asks for, where there is room."""
    corners = pose.corners(0.6, 0.02)
    if corners.min() > 0 and corners.max() < 1 and not (layout.area(corners) & layout.taken).any():
        layout.plan.clutter.append(pose)
        layout.reserve(corners)
