"""Masks as run lengths: the one place that encodes, decodes and resizes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError

# A run-length mask of a few bytes can claim any size, so the claim is checked before memory is asked for.
MAX_MASK_PIXELS = 1 << 28

BoolMask = npt.NDArray[np.bool_]
Rle = dict[str, Any]


def encode_mask(mask: BoolMask) -> Rle:
    """Compress a mask, (H, W) bool, to ``{"size": [H, W], "counts": str}``, ready for JSON."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle, name: str) -> BoolMask:
    """Unpack a run-length mask.

    Args:
        rle: ``{"size": [H, W], "counts": ...}``; counts compressed (str or bytes) or a list of run lengths.
        name: what the mask belongs to, for the error line.

    Returns:
        (H, W) bool.

    Raises:
        BadInputError: the run lengths are broken or do not fill the stated size.
    """
    from pycocotools import mask as coco

    return np.ascontiguousarray(coco.decode(compressed_rle(rle, name))).astype(np.bool_)


def compressed_rle(rle: Rle, name: str) -> Rle:
    """A run-length mask of any kind as ``{"size": [H, W], "counts": str}``, compressed, checked, ready for JSON.

    Raises:
        BadInputError: as ``decode_rle``.
    """
    from pycocotools import mask as coco

    height, width = mask_size(rle, name)
    counts = rle["counts"]
    try:
        if isinstance(counts, list | tuple):
            counts = coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)["counts"]
        elif isinstance(counts, str):
            counts = counts.encode("ascii")
        _check_runs(counts, height * width)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f"{name}: its run-length mask is broken ({error}); get the annotations again") from error
    return {"size": [height, width], "counts": counts.decode("ascii")}


def rle_box(rle: Rle) -> tuple[int, int, int, int]:
    """Box of a mask that ``compressed_rle`` gave, without decoding it; as ``mask_box``."""
    from pycocotools import mask as coco

    x, y, width, height = (int(value) for value in coco.toBbox(rle))
    return x, y, x + width, y + height


def mask_size(rle: Rle, name: str) -> tuple[int, int]:
    """Height and width that a run-length mask states.

    Raises:
        BadInputError: the size is missing, not two positive whole numbers, or beyond ``MAX_MASK_PIXELS``.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list | tuple) or len(size) != 2 or "counts" not in rle:
        raise BadInputError(f"{name}: its mask is no run-length mask (needs 'size' and 'counts')")
    return checked_size(size, f"{name}: its mask")


def checked_size(size: Sequence[Any], what: str) -> tuple[int, int]:
    """Height and width as a file states them.

    Args:
        size: the two.
        what: whose, for the error line.

    Raises:
        BadInputError: they are not positive whole numbers, or beyond ``MAX_MASK_PIXELS``.
    """
    height, width = size
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise BadInputError(f"{what} states the size {height!r} x {width!r}, which no image has")
    if height * width > MAX_MASK_PIXELS:
        raise BadInputError(f"{what} states {height} x {width} pixels, beyond the limit of {MAX_MASK_PIXELS}")
    return height, width


def as_rle(segmentation: Any, name: str) -> Rle:
    """The one run-length mask of an annotation, which files hold as a dict or as a list of one dict.

    Raises:
        BadInputError: it is something else.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1:
        segmentation = segmentation[0]
    if not isinstance(segmentation, dict):
        raise BadInputError(f"{name}: its segmentation is no run-length mask (a dict, or a list of one)")
    mask_size(segmentation, name)
    return segmentation


def mask_box(mask: BoolMask) -> tuple[int, int, int, int]:
    """Box ``(x1, y1, x2, y2)`` of a mask, (H, W) bool; x2 and y2 one past the last pixel; zeros if empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def resize_nearest(mask: BoolMask, height: int, width: int) -> BoolMask:
    """Resize a mask, (h, w) bool, to (height, width) bool, taking the pixel under the centre of each new one.

    That is Pillow's NEAREST, computed in whole numbers: a centre on the border of two pixels takes the later one, where
    Pillow's running sum of floats takes either.
    """
    if mask.shape == (height, width):
        return mask
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    resized: BoolMask = mask[rows[:, None], columns[None, :]]
    return resized


def _check_runs(counts: bytes, pixels: int) -> None:
    """Refuse compressed run lengths that do not add up to the mask: the C decoder leaves the rest of it unset memory.

    The code is that of the COCO API: six bits a byte (offset 48, bit 5 says that more follow, bit 4 of the last one is
    the sign); from the fourth run on, the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        chunk = byte - 48
        if not 0 <= chunk < 64 or shift > 35:
            raise ValueError("an unknown character")
        value |= (chunk & 31) << shift
        shift += 5
        if chunk & 32:
            continue
        if chunk & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("a negative run")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("cut off in the middle")
    if sum(runs) != pixels:
        raise ValueError(f"{sum(runs)} pixels where the size says {pixels}")
