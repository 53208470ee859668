"""Compressed run lengths of masks, as COCO's tools read them."""

from typing import Any

import numpy as np
import numpy.typing as npt


def encode_rle(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return ``{"size": [H, W], "counts": str}`` of a mask (H, W) bool.

    The runs alternate between outside and inside, column by column, and begin outside. From the fourth on, a run is
    stored as the difference to the run two before, in groups of five bits, the lowest first.
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat.size and flat[0] else [0]
    runs = np.diff([*start, *edges.tolist(), flat.size])
    runs[3:] -= runs[1:-2].copy()
    return {"size": list(mask.shape), "counts": "".join(map(_characters, runs.tolist()))}


def _characters(value: int) -> str:
    """Return a signed number in groups of five bits as characters from ``0`` on; bit 6 marks that more follow."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        more = value != (-1 if bits & 16 else 0)
        text += chr(48 + bits + 32 * more)
        if not more:
            return text
