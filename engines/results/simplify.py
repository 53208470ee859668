"""Simplifies the outlines of a region without making them cross."""

import cv2
import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.float64]  # (N, 2), closed: the last point is the first


def simplified(rings: list[Ring], tolerance_px: float) -> list[Ring]:
    """Return the rings of a polygon with fewer points, by Douglas and Peucker's method.

    Args:
        rings: outer ring and holes, in pixels.
        tolerance_px: largest distance of a removed point from the new outline; 0 keeps the rings.

    Returns:
        The rings, exact if the simplified ones would touch or cross themselves or each other.
    """
    if tolerance_px == 0:
        return rings
    fewer = [_fewer_points(ring, tolerance_px) for ring in rings]
    return rings if _cross(fewer) or _any_outside(fewer[1:], fewer[0]) else fewer


def _fewer_points(ring: Ring, tolerance_px: float) -> Ring:
    points = cv2.approxPolyDP(ring[:-1].astype(np.float32), tolerance_px, closed=True)[:, 0]
    return ring if len(points) < 3 else np.concatenate([points, points[:1]]).astype(np.float64)


def _any_outside(holes: list[Ring], outer: Ring) -> bool:
    contour = outer.astype(np.float32)
    return any(cv2.pointPolygonTest(contour, tuple(map(float, hole[0])), False) <= 0 for hole in holes)


def _cross(rings: list[Ring]) -> bool:
    """Return whether two edges meet anywhere but at the corner that they share."""
    starts, ends = (np.concatenate([ring[part] for ring in rings]) for part in (slice(None, -1), slice(1, None)))
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    for index in range(len(starts) - 1):
        start, end, later = starts[index], ends[index], slice(index + 1, None)
        near = (low[later] <= high[index]).all(axis=1) & (high[later] >= low[index]).all(axis=1)
        others = np.flatnonzero(near) + index + 1
        a, b = starts[others], ends[others]
        meets = (_side(start, end, a) * _side(start, end, b) <= 0) & (_side(a, b, start) * _side(a, b, end) <= 0)
        follows, precedes = (a == end).all(axis=1), (b == start).all(axis=1)
        turns_back = (_side(start, end, b) == 0) & (((end - start) * (b - a)).sum(axis=1) < 0)
        closes_back = (_side(start, end, a) == 0) & (((end - start) * (b - a)).sum(axis=1) < 0)
        bad = np.where(follows, turns_back, np.where(precedes, closes_back, meets))
        if bad.any():
            return True
    return False


def _side(start: Ring, end: Ring, point: Ring) -> npt.NDArray[np.float64]:
    """Return on which side of a line a point lies: the sign, 0 on it."""
    along, to = end - start, point - start
    return np.asarray(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
