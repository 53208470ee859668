"""Masks as outlines: the polygons of COCO annotations, drawn as the COCO API draws them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError

from .masks import Rle, compressed_rle, mask_size

Polygon = Sequence[float]
# What one annotation holds: a list of polygons, or a run-length mask.
Segmentation = list[Polygon] | Rle

_LEAST_NUMBERS = 6  # three points
# The C code keeps five points for each pixel that an outline passes; real ones pass some ten thousand.
_LONGEST_OUTLINE_PIXELS = 1 << 22


def as_segmentation(value: Any, name: str) -> Segmentation | None:
    """A COCO segmentation: polygons, a run-length mask, or None where it is there but empty.

    Only its form is looked at; its numbers are when it is drawn.

    Raises:
        BadInputError: it is something else.
    """
    if isinstance(value, list):
        value = [part for part in value if part != []]
        if len(value) == 1 and isinstance(value[0], dict):
            value = value[0]
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        mask_size(value, name)
        return value
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        raise BadInputError(f"{name}: its segmentation is neither polygons nor a run-length mask")
    return value


def merged_rle(parts: Sequence[Segmentation], height: int, width: int, name: str) -> Rle:
    """The union of segmentations as one compressed run-length mask, ``{"size": [H, W], "counts": str}``.

    Raises:
        BadInputError: a polygon or run-length mask is broken, or a run-length mask has another size.
    """
    from pycocotools import mask as coco

    rles: list[Rle] = []
    for part in parts:
        if isinstance(part, dict):
            rle = compressed_rle(part, name)
            if rle["size"] != [height, width]:
                size = f"{rle['size'][0]}x{rle['size'][1]}"
                raise BadInputError(
                    f"{name}: a part of its mask is {size}, its image {height}x{width} (height x width)"
                )
            rles.append(rle)
        else:
            outlines = [_checked(polygon, height, width, name).tolist() for polygon in part]
            # One by one: a list that begins with four numbers would be taken for boxes.
            rles += [rle for outline in outlines for rle in coco.frPyObjects([outline], height, width)]
    merged = coco.merge(rles)
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def fingerprint(parts: Sequence[Segmentation]) -> str:
    """Equal for equal segmentations only."""
    return json.dumps(parts, sort_keys=True, default=lambda value: value.decode("ascii"))


def _checked(polygon: Polygon, height: int, width: int, name: str) -> npt.NDArray[np.float64]:
    """The numbers x1, y1, x2, y2, ... of one polygon, fit for the C code, which trusts them."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f"{name}: one of its polygons holds something else than numbers") from error
    if numbers.ndim != 1 or numbers.size < _LEAST_NUMBERS or numbers.size % 2:
        raise BadInputError(f"{name}: one of its polygons is no list of at least three points x, y")
    points = numbers.reshape(-1, 2)
    size = np.array([width, height])
    if not np.isfinite(points).all() or (points < -size).any() or (points > 2 * size).any():
        raise BadInputError(f"{name}: one of its polygons lies far outside its image of {height}x{width}")
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > _LONGEST_OUTLINE_PIXELS:
        raise BadInputError(f"{name}: one of its polygons has an outline of {length:.0f} pixels, which no object has")
    return numbers
