"""Converts run lengths and polygons of annotations to COCO run-length masks and to boolean arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError

BoolMask = npt.NDArray[np.bool_]
Rle = dict[str, Any]
Polygon = Sequence[float]

# A run-length mask of a few bytes can declare any size: the size is checked before memory is allocated.
MAX_MASK_PIXELS = 1 << 28
# The C code stores five points for each pixel of an outline; real outlines have some ten thousand pixels.
_MAX_OUTLINE_PIXELS = 1 << 22


@dataclass(frozen=True, slots=True)
class BrokenMask:
    """Takes the place of a mask that cannot be read and gives the reason."""

    reason: str


def annotated_mask(parts: Sequence[Rle | list[Polygon]], name: str, size: Sequence[Any] = ()) -> Rle | BrokenMask:
    """Return the union of an annotation's parts as a checked mask, ``{"size": [H, W], "counts": str}``.

    Args:
        parts: run-length masks (counts compressed, as str or bytes, or a list of run lengths) and lists of polygons
            (x1, y1, x2, y2, ...); at least one.
        name: owner of the mask, for messages.
        size: height and width of the image, for polygons and several parts.
    """
    try:
        if len(parts) == 1 and isinstance(parts[0], dict):
            return checked_rle(parts[0], name)
        height, width = checked_size(size, name)
        rles: list[Rle] = []
        for part in parts:
            if isinstance(part, dict):
                rles.append(checked_rle(part, name))
                if rles[-1]["size"] != [height, width]:
                    found, wanted = rles[-1]["size"], [height, width]
                    raise BadInputError(f"{name}: one part has the size {found}, its image {wanted} (height, width)")
            else:
                # One by one: pycocotools reads a list that begins with four numbers as boxes.
                for polygon in part:
                    rles += _coco().frPyObjects([_checked_polygon(polygon, height, width, name)], height, width)
        return {"size": [height, width], "counts": _coco().merge(rles)["counts"].decode("ascii")}
    except BadInputError as error:
        return BrokenMask(str(error))


def run_length_masks(segmentation: Any, name: str, hint: str = "") -> list[Rle]:
    """Return the unchecked run-length masks of an annotation: a dict, or a list of dicts whose union is meant.

    Raises:
        BadInputError: the annotation is something else.
    """
    masks = segmentation if isinstance(segmentation, list) else [segmentation]
    if not masks or not all(isinstance(mask, dict) for mask in masks):
        raise BadInputError(f"{name} has no run-length mask (a dict, or a list of dicts){hint}")
    return masks


def checked_rle(rle: Any, name: str) -> Rle:
    """Convert a run-length mask to ``{"size": [H, W], "counts": str}`` and check that its runs fill the size.

    Raises:
        BadInputError: the mask is something else, too large, or broken.
    """
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise BadInputError(f"{name} is not a run-length mask (needs 'size' and 'counts')")
    height, width = checked_size(rle["size"], name)
    counts = rle["counts"]
    try:
        if isinstance(counts, list | tuple):
            counts = _coco().frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)["counts"]
        elif isinstance(counts, str):
            counts = counts.encode("ascii")
        _check_runs(counts, height * width)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f"{name}: its run-length mask is broken ({error}); get the annotations again") from error
    return {"size": [height, width], "counts": counts.decode("ascii")}


def checked_size(size: Any, name: str) -> tuple[int, int]:
    """Return the height and width declared by a file.

    Raises:
        BadInputError: they are not two positive integers, or exceed ``MAX_MASK_PIXELS``.
    """
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BadInputError(f"{name} states the size {size!r}, which is not a height and width in pixels")
    height, width = size
    if height * width > MAX_MASK_PIXELS:
        raise BadInputError(f"{name} states {height} x {width} pixels, beyond the limit of {MAX_MASK_PIXELS}")
    return height, width


def _coco() -> Any:
    """Import pycocotools on first use: metrics do not need it."""
    from pycocotools import mask

    return mask


def encode_mask(mask: BoolMask) -> Rle:
    """Compress a mask, (H, W) bool, to ``{"size": [H, W], "counts": str}``, which is JSON-serialisable."""
    rle = _coco().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> BoolMask:
    """Decode a mask from ``encode_mask`` or ``checked_rle`` to (H, W) bool."""
    return np.ascontiguousarray(_coco().decode(rle)).astype(np.bool_)


def empty_rle(height: int, width: int) -> Rle:
    """Return a run-length mask without foreground."""
    return encode_mask(np.zeros((height, width), np.bool_))


def rle_box(rle: Rle) -> tuple[int, int, int, int]:
    """Return the box ``(x1, y1, x2, y2)`` of a checked mask; x2 and y2 are exclusive; zeros if empty."""
    x, y, width, height = (int(value) for value in _coco().toBbox(rle))
    return x, y, x + width, y + height


def resize_nearest(mask: BoolMask, height: int, width: int) -> BoolMask:
    """Resize a mask, (h, w) bool, to (height, width) bool, with the pixel under the centre of each new pixel.

    The result is that of Pillow's NEAREST, computed in integers: a centre on the border of two pixels selects the
    later one, whereas Pillow's running sum of floats selects either.
    """
    if mask.shape == (height, width):
        return mask
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    resized: BoolMask = mask[rows[:, None], columns[None, :]]
    return resized


def _checked_polygon(polygon: Polygon, height: int, width: int, name: str) -> list[float]:
    """Return the checked coordinates x1, y1, x2, y2, ... of a polygon for the C code, which does not check them."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f"{name}: one of its polygons does not contain numbers only") from error
    if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2:
        raise BadInputError(f"{name}: one of its polygons is not a list of at least three points x, y")
    points = numbers.reshape(-1, 2)
    size = np.array([width, height])
    if not np.isfinite(points).all() or (points < -size).any() or (points > 2 * size).any():
        raise BadInputError(f"{name}: one of its polygons is far outside its image of {height}x{width}")
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > _MAX_OUTLINE_PIXELS:
        raise BadInputError(f"{name}: one of its polygons has an outline of {length:.0f} pixels: too long")
    return [float(number) for number in numbers]


def _check_runs(counts: bytes, pixels: int) -> None:
    """Raise ValueError for run lengths that do not fill the mask: the C decoder leaves the rest uninitialised.

    The encoding is that of the COCO API: six bits per byte (offset 48; bit 5 marks continuation, bit 4 of the last byte
    is the sign); from the fourth run on, the difference to the run two before.
    """
    chunks = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if ((chunks < 0) | (chunks > 63)).any():
        raise ValueError("an unknown character")
    last = (chunks & 32) == 0
    if chunks.size and not last[-1]:
        raise ValueError("cut off in the middle")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])[: ends.size]
    lengths = ends - starts + 1
    if (lengths > 8).any():
        raise ValueError("a run of too many characters")
    shifts = 5 * (np.arange(chunks.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((chunks & 31) << shifts, starts) if ends.size else chunks
    runs[(chunks[ends] & 16) != 0] -= 1 << (5 * lengths[(chunks[ends] & 16) != 0])
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if (runs < 0).any():
        raise ValueError("a negative run")
    if runs.sum() != pixels:
        raise ValueError(f"{runs.sum()} pixels where the size says {pixels}")
