"""The figures of one phrase, collected strip by strip."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..segmentation import Segmentation, sigmoid


class Figures:
    """Collects the figures of a segmentation from strips of its logits; see ``describe`` for their meaning.

    Args:
        segmentation: segmentation of the phrase.
        size: (H, W) of the image, px.
    """

    def __init__(self, segmentation: Segmentation, size: tuple[int, int]) -> None:
        self._segmentation, self._size = segmentation, size
        self._area = 0
        self._probabilities = 0.0
        self._boxes: list[tuple[int, int, int, int]] = []

    def add(self, top: int, logits: npt.NDArray[np.float32]) -> None:
        """Add a strip (h, W) float32 whose first row is ``top``."""
        mask = logits > self._segmentation.cut_logit
        pixels = mask.astype(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        if width:
            self._boxes.append((x, top + y, x + width, top + y + height))
        self._area += cv2.countNonZero(pixels)
        self._probabilities += float(sigmoid(logits[mask]).sum(dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        height, width = self._size
        left, upper, right, lower = np.array(self._boxes or [(0, 0, 0, 0)]).T
        return {
            "phrase": self._segmentation.phrase,
            "box": [int(left.min()), int(upper.min()), int(right.max()), int(lower.max())] if self._area else None,
            "area_px": self._area,
            "area_share": round(self._area / (height * width), 6),
            "mean_probability": round(self._probabilities / self._area, 6) if self._area else None,
            "presence": None if self._segmentation.presence is None else round(self._segmentation.presence, 6),
            "warnings": list(self._segmentation.warnings),
        }


def describe(segmentation: Segmentation, logits: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of one phrase as JSON values.

    - ``phrase``
    - ``box``: ``[x1, y1, x2, y2]`` in px, half-open: columns x1 up to but not x2, so the width is x2 - x1; ``None``
      for an empty mask.
    - ``area_px``: area of the mask in px; ``area_share``: its share of the image, 0..1.
    - ``mean_probability``: over the pixels of the mask, 0..1; ``None`` for an empty mask.
    - ``presence``: how likely it is that the image shows what the phrase refers to, 0..1; ``None`` if the model has no
      presence scores.
    - ``polygons``: one for each region connected by edges or corners, ``{"box", "area_px", "score", "outer": ring,
      "holes": [ring, ...]}``. ``score`` is the mean probability of its pixels. A ring is a list of
      ``[x, y]``, the boundary pixels of the mask that are its corners. Filling all rings of a polygon together
      (``cv2.fillPoly``) restores the region. Tiled rasters have them in their vector file only.
    - ``warnings``: lines about words that were cut or are unknown.

    Args:
        segmentation: segmentation of the phrase.
        logits: its ``full_size_logits()``, (H, W) float32.
    """
    figures = Figures(segmentation, (logits.shape[0], logits.shape[1]))
    figures.add(0, logits)
    return figures.to_dict() | {"polygons": _polygons(logits > segmentation.cut_logit, logits)}


def _polygons(mask: npt.NDArray[np.bool_], logits: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    pixels = mask.astype(np.uint8)
    contours, hierarchy = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour.reshape(-1, 2).tolist() for contour in contours]
    parents = [] if hierarchy is None else hierarchy[0][:, 3].tolist()
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    inside = labels > 0
    totals = np.bincount(labels[inside], sigmoid(logits[inside]), count)
    polygons: dict[int, dict[str, Any]] = {}
    for index, ring in enumerate(rings):
        if parents[index] < 0:
            label = labels[ring[0][1], ring[0][0]]
            left, top, width, height, area = boxes[label].tolist()
            polygons[index] = {
                "box": [left, top, left + width, top + height],
                "area_px": area,
                "score": round(float(totals[label]) / area, 4),
                "outer": ring,
                "holes": [],
            }
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            polygons[parent]["holes"].append(ring)
    return list(polygons.values())
