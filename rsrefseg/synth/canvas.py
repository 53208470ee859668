"""Paints objects with anti-aliasing: each one is drawn several times larger and averaged down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .domain import RGB

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates


@dataclass(frozen=True, slots=True)
class Pose:
    """Position of an object: centre and length as fractions of the image, angle in radians."""

    x: float
    y: float
    length: float
    angle: float

    def to_image(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert object coordinates (N, 2), x along the length in [-1, 1], to fractions of the image."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        return np.asarray(points @ turn * (self.length / 2) + np.array([self.x, self.y]), np.float64)

    def corners(self, aspect: float, margin: float = 0.0) -> NDArray[np.float64]:
        """Return the corners (4, 2) of the object's rectangle with width ``aspect`` per length, plus a margin."""
        grow = 2 * margin / self.length
        hx, hy = 1 + grow, aspect + grow
        return self.to_image(np.array([[-hx, -hy], [hx, -hy], [hx, hy], [-hx, hy]]))


class Brush:
    """Draws in object coordinates: x along the length in [-1, 1], y across it in the same unit.

    ``solid`` parts form the silhouette of the object; other parts are clipped to the silhouette.
    """

    def __init__(self, pose: Pose, aspect: float, size: int, rgb: RGB) -> None:
        self.factor = max(2, min(4, round(1024 / size)))  # drawn this many times larger: finer for small images
        corners = Pose(pose.x, pose.y, pose.length * 1.12, pose.angle).corners(aspect) * size
        low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, size - 1)
        high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, size)
        self.x0, self.y0 = int(low[0]), int(low[1])
        self.width, self.height = max(int(high[0] - low[0]), 1), max(int(high[1] - low[1]), 1)
        self.pose = pose
        self.unit = pose.length / 2 * size * self.factor  # drawn pixels per object unit
        self.size = size
        shape = (self.height * self.factor, self.width * self.factor)
        self.color = np.full((*shape, 3), np.round(rgb), np.uint8)
        self.cover = np.zeros(shape, np.uint8)

    def _fixed(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        drawn = (self.pose.to_image(points) * self.size - (self.x0, self.y0)) * self.factor
        return np.asarray(np.round((drawn - 0.5) * (1 << _SHIFT)), np.int32)

    def poly(self, points: Sequence[Sequence[float]] | NDArray[np.float64], rgb: RGB, *, solid: bool = True) -> None:
        """Fill a polygon."""
        fixed = [self._fixed(np.asarray(points, np.float64))]
        cv2.fillPoly(self.color, fixed, rgb, cv2.LINE_8, _SHIFT)
        if solid:
            cv2.fillPoly(self.cover, fixed, (255,), cv2.LINE_8, _SHIFT)

    def rect(self, x0: float, y0: float, x1: float, y1: float, rgb: RGB, *, solid: bool = True) -> None:
        """Fill a rectangle along the object's axes."""
        self.poly([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], rgb, solid=solid)

    def disc(self, x: float, y: float, rx: float, rgb: RGB, ry: float | None = None, *, solid: bool = True) -> None:
        """Fill an ellipse."""
        self.poly(ellipse(x, y, rx, rx if ry is None else ry), rgb, solid=solid)

    def line(self, points: Sequence[Sequence[float]] | NDArray[np.float64], width: float, rgb: RGB) -> None:
        """Stroke a line ``width`` object units wide inside the silhouette; never thinner than half a pixel."""
        thickness = max(round(width * self.unit), self.factor // 2, 1)
        fixed = [self._fixed(np.asarray(points, np.float64))]
        cv2.polylines(self.color, fixed, False, rgb, thickness, cv2.LINE_8, _SHIFT)

    def loop(self, points: NDArray[np.float64], width: float, rgb: RGB) -> None:
        """Stroke a closed outline inside the silhouette."""
        self.line(np.concatenate([points, points[:1]]), width, rgb)

    def frame(self, x0: float, y0: float, x1: float, y1: float, width: float, rgb: RGB) -> None:
        """Stroke a rectangle's outline inside the silhouette."""
        self.loop(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), width, rgb)


class Canvas:
    """Image of a scene while it is painted: radiance (size, size, 3) float32 on the 0 to 255 scale."""

    def __init__(self, image: F32, sun: tuple[float, float], shadow: float) -> None:
        self.image = image
        self.size = image.shape[0]
        self.sun = sun  # shadow of a unit of height, as fractions of the image
        self.shadow = shadow

    def cast(self, cover: F32, x0: int, y0: int, height: float) -> None:
        """Darken the ground in the shadow of an object with this silhouette and ``height``."""
        dx, dy = self.sun[0] * height * self.size, self.sun[1] * height * self.size
        reach = math.ceil(max(abs(dx), abs(dy)))
        if reach < 1:
            return
        pad = reach + 2
        padded = cv2.copyMakeBorder(cover, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
        swept = np.zeros_like(padded)
        steps = max(2, min(8, math.ceil(reach / max(2.0, self.size / 100))))
        for step in range(1, steps + 1):
            move = np.array([[1, 0, dx * step / steps], [0, 1, dy * step / steps]], np.float32)
            np.maximum(swept, cv2.warpAffine(padded, move, padded.shape[::-1]), out=swept)
        swept = cv2.GaussianBlur(swept, (0, 0), 0.5 + self.size / 640)
        top, left = y0 - pad, x0 - pad
        rows = slice(max(top, 0), min(top + swept.shape[0], self.size))
        cols = slice(max(left, 0), min(left + swept.shape[1], self.size))
        part = swept[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        # Skylight is blue, so shadows lose red first.
        tint = np.array([1.0, 0.95, 0.84], np.float32) * self.shadow
        self.image[rows, cols] *= 1 - part[..., None] * tint

    def paint(self, brush: Brush, height: float, texture: F32 | None = None) -> Mask:
        """Paint a drawn object and its shadow; return the mask of the object, (size, size) bool."""
        area = (brush.width, brush.height)
        color = cv2.resize(brush.color, area, interpolation=cv2.INTER_AREA).astype(np.float32)
        cover = cv2.resize(brush.cover, area, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        if height > 0:
            self.cast(cover, brush.x0, brush.y0, height)
        rows = slice(brush.y0, brush.y0 + brush.height)
        cols = slice(brush.x0, brush.x0 + brush.width)
        if texture is not None:
            color = color * (1 + texture[rows, cols, None])
        weight = cover[..., None]
        self.image[rows, cols] = self.image[rows, cols] * (1 - weight) + color * weight
        mask = np.zeros((self.size, self.size), np.bool_)
        mask[rows, cols] = cover > 0.5
        return mask


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * math.pi) -> F64:
    """Return points (N, 2) on an ellipse or an arc of it."""
    turn = np.linspace(start, stop, 48, endpoint=(stop - start) < 2 * math.pi - 1e-6)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def shade(rgb: RGB, factor: float) -> RGB:
    """Return a darker (``factor`` < 1) or lighter (> 1) tone of a colour."""
    red, green, blue = (min(max(channel * factor, 0.0), 255.0) for channel in rgb)
    return red, green, blue
