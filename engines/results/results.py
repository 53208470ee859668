"""From answers to files: one mask per phrase, an overlay, and a JSON with the figures."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..segmenter import Segmentation
from ..system.files import atomic_file, atomic_write_json

RESULT_SCHEMA_VERSION = 1
_SLUG_CHARACTERS = 40
_STEM_BYTES = 120
_FAST = 1  # zlib level: an overlay is written once and looked at, its size matters less than the wait


def describe(segmentation: Segmentation) -> dict[str, Any]:
    """The figures of one answer, as plain JSON values.

    - ``phrase``
    - ``box``: ``[x1, y1, x2, y2]`` in px, half-open: columns x1 up to but not x2, so the width is x2 - x1; ``None``
      for an empty mask.
    - ``area_px``, ``area_share``: of the picture, 0..1.
    - ``mean_probability``: over the pixels of the mask, 0..1; ``None`` for an empty mask.
    - ``polygons``: one for each connected region, ``{"outer": ring, "holes": [ring, ...]}``; a ring is a list of
      ``[x, y]``, the boundary pixels of the mask that are its corners. Filling all rings of a polygon together
      (``cv2.fillPoly``) gives back the region.
    - ``warnings``: lines about words that were cut or are not known.
    """
    mask = segmentation.mask
    area = int(np.count_nonzero(mask))
    return {
        "phrase": segmentation.phrase,
        "box": _box(mask) if area else None,
        "area_px": area,
        "area_share": round(area / mask.size, 6),
        "mean_probability": round(float(segmentation.probability[mask].mean(dtype=np.float64)), 6) if area else None,
        "polygons": _polygons(mask),
        "warnings": list(segmentation.warnings),
    }


def write_results(
    out_dir: Path, stem: str, image: npt.NDArray[np.uint8], segmentations: Sequence[Segmentation]
) -> list[Path]:
    """Write what phrases found in a picture (H, W, 3) uint8 RGB.

    In ``out_dir``: for each phrase ``<stem>_<phrase>_mask.png`` (0 and 255, the picture's size), ``<stem>_overlay.png``
    and, last, ``<stem>.json`` with ``describe``'s figures and the names of the others. Each file appears whole or
    not at all.

    Returns:
        The files written: masks in the order of the phrases, overlay, JSON.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    from .overlay import overlay

    stem = _safe_stem(stem)
    masks = [out_dir / f"{stem}_{slug}_mask.png" for slug in _slugs([answer.phrase for answer in segmentations])]
    for path, answer in zip(masks, segmentations, strict=True):
        _write_png(path, answer.mask.astype(np.uint8) * np.uint8(255))
    overlay_path, json_path = out_dir / f"{stem}_overlay.png", out_dir / f"{stem}.json"
    _write_png(overlay_path, overlay(image, segmentations))
    results = [describe(answer) | {"mask_file": path.name} for answer, path in zip(segmentations, masks, strict=True)]
    height, width = image.shape[:2]
    document = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "width": width,
        "height": height,
        "overlay_file": overlay_path.name,
        "results": results,
    }
    # Indented, every coordinate of a polygon would take a line.
    atomic_write_json(json_path, document, indent=None)
    return [*masks, overlay_path, json_path]


def _box(mask: npt.NDArray[np.bool_]) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _polygons(mask: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    import cv2

    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour.reshape(-1, 2).tolist() for contour in contours]
    polygons: list[dict[str, Any]] = []
    for index, ring in enumerate(rings):
        _, _, child, parent = hierarchy[0][index]
        if parent >= 0:
            continue
        holes = []
        while child >= 0:
            holes.append(rings[child])
            child = hierarchy[0][child][0]
        polygons.append({"outer": ring, "holes": holes})
    return polygons


def _slugs(phrases: Sequence[str]) -> list[str]:
    """Names for files, one for each phrase: plain letters, and no name twice."""
    slugs: list[str] = []
    for phrase in phrases:
        plain = unicodedata.normalize("NFKD", phrase).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:_SLUG_CHARACTERS].strip("-") or "phrase"
        number, name = 2, slug
        while name in slugs:
            name, number = f"{slug}-{number}", number + 1
        slugs.append(name)
    return slugs


def _safe_stem(stem: str) -> str:
    """A stem that stays one visible file name in its folder."""
    short = os.fsencode(re.sub(r"[/\\\0]", "-", stem).lstrip("."))[:_STEM_BYTES]
    return short.decode(errors="ignore") or "image"


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with atomic_file(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=_FAST)
