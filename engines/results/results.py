"""Writes segmentations to files: one mask per phrase, an overlay, and a JSON file with the figures."""

import contextlib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..images.scene import Scene
from ..segmentation import Segmentation, sigmoid
from ..system.files import atomic_file, atomic_write_json
from .maps import open_maps
from .overlay import Overlay
from .provenance import Provenance, source_name

RESULT_SCHEMA_VERSION = 2
_SLUG_CHARACTERS = 40
_STEM_BYTES = 120
_DIGEST_CHARACTERS = 8
_FAST = 1  # zlib level: for an overlay, speed matters more than size


def write_results(
    out_dir: Path,
    stem: str,
    image: npt.NDArray[np.uint8] | Scene,
    segmentations: Sequence[Segmentation],
    source: Path | str | None = None,
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write the segmentations of an image to files.

    The files in ``out_dir`` are masks, ``<stem>_overlay.png`` and, last, ``<stem>.json`` with the figures of
    ``describe`` and the names of the others. The masks of a photo or an array are ``<stem>_<phrase>_mask.png`` for each
    phrase (0 and 255, the image's size); those of a raster are the bands of ``<stem>_masks.tif``, and their regions
    ``<stem>.geojson`` (see ``open_maps``). Each file is written atomically, and masks one after another, so memory use
    does not grow with the number of phrases.

    Args:
        out_dir: folder of the files, created if missing.
        stem: beginning of the file names.
        image: (H, W, 3) uint8 RGB, or a scene.
        segmentations: segmentations of the image.
        source: file of the image. If ``out_dir`` holds results of another file with this stem, they are kept, and the
            new file names contain a digest of the source's path.
        provenance: added to the JSON file.

    Returns:
        Paths of the files: masks in the order of the phrases, for rasters the regions, overlay, JSON.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    scene = image if isinstance(image, Scene) else Scene(image)
    stem = _safe_stem(stem)
    path = source_name(source) if source is not None else None
    if path is not None and _source_of(out_dir / f"{stem}.json") not in (None, path):
        stem += "-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:_DIGEST_CHARACTERS]
    overlay_path, json_path = out_dir / f"{stem}_overlay.png", out_dir / f"{stem}.json"
    overlay, results = Overlay(scene.image), []
    phrases = [found.phrase for found in segmentations]
    if scene.raster is None:
        files = [out_dir / f"{stem}_{slug}_mask.png" for slug in _slugs(phrases)]
    else:
        files = [out_dir / f"{stem}_masks.tif", out_dir / f"{stem}.geojson"]
    with contextlib.ExitStack() as stack:
        maps = None
        if scene.raster is not None:
            common = {"source": path, "bundle_sha256": provenance.bundle_sha256 if provenance is not None else None}
            maps = stack.enter_context(open_maps(scene.raster, scene.image.shape[:2], phrases, common, *files))
        for index, segmentation in enumerate(segmentations):
            logits = segmentation.full_size_logits()
            figures = describe(segmentation, logits)
            if maps is None:
                _write_png(files[index], (logits > 0).astype(np.uint8) * np.uint8(255))
                figures["mask_file"] = files[index].name
            else:
                figures |= {"mask_file": files[0].name} | maps.add(segmentation.phrase, logits, scene.valid)
            overlay.add(segmentation.phrase, logits, figures["mean_probability"])
            results.append(figures)
    _write_png(overlay_path, overlay.render())
    document = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "source": path,
        "width": scene.image.shape[1],
        "height": scene.image.shape[0],
        "overlay_file": overlay_path.name,
        "provenance": provenance.to_dict() if provenance is not None else None,
        "results": results,
    }
    # With an indent, every coordinate of a polygon would take a line.
    atomic_write_json(json_path, document, indent=None)
    return [*files, overlay_path, json_path]


def describe(segmentation: Segmentation, logits: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of one phrase as JSON values.

    - ``phrase``
    - ``box``: ``[x1, y1, x2, y2]`` in px, half-open: columns x1 up to but not x2, so the width is x2 - x1; ``None``
      for an empty mask.
    - ``area_px``: area of the mask in px; ``area_share``: its share of the image, 0..1.
    - ``mean_probability``: over the pixels of the mask, 0..1; ``None`` for an empty mask.
    - ``polygons``: one for each connected region, ``{"outer": ring, "holes": [ring, ...]}``; a ring is a list of
      ``[x, y]``, the boundary pixels of the mask that are its corners. Filling all rings of a polygon together
      (``cv2.fillPoly``) restores the region.
    - ``warnings``: lines about words that were cut or are unknown.

    Args:
        segmentation: segmentation of the phrase.
        logits: its ``full_size_logits()``, (H, W) float32.
    """
    mask = logits > 0
    pixels = mask.astype(np.uint8)
    area = cv2.countNonZero(pixels)
    x, y, width, height = cv2.boundingRect(pixels)
    return {
        "phrase": segmentation.phrase,
        "box": [x, y, x + width, y + height] if area else None,
        "area_px": area,
        "area_share": round(area / mask.size, 6),
        "mean_probability": round(float(sigmoid(logits[mask]).mean(dtype=np.float64)), 6) if area else None,
        "polygons": _polygons(pixels),
        "warnings": list(segmentation.warnings),
    }


def _polygons(pixels: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    contours, hierarchy = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour.reshape(-1, 2).tolist() for contour in contours]
    parents = [] if hierarchy is None else hierarchy[0][:, 3].tolist()
    polygons: dict[int, dict[str, Any]] = {
        index: {"outer": ring, "holes": []} for index, ring in enumerate(rings) if parents[index] < 0
    }
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            polygons[parent]["holes"].append(ring)
    return list(polygons.values())


def _source_of(path: Path) -> str | None:
    """Return the source named in a JSON file of results: empty if it names none, ``None`` if there is no file."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return "" if path.exists() else None
    return str(document.get("source") or "") if isinstance(document, dict) else ""


def _slugs(phrases: Sequence[str]) -> list[str]:
    """Return one name for each phrase, in ASCII letters, digits and hyphens, without duplicates."""
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
    """Return a stem that is one visible file name: no separators, no leading dot, at most 120 bytes."""
    short = os.fsencode(re.sub(r"[/\\\0]", "-", stem).lstrip("."))[:_STEM_BYTES]
    return short.decode(errors="ignore") or "image"


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with atomic_file(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=_FAST)
