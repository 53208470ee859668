"""Writes segmentations to files: one mask per phrase, an overlay, and a JSON file with the figures."""

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

from ..images.names import is_remote
from ..images.scene import RasterInfo, Scene
from ..segmentation import Segmentation, TiledSegmentation
from ..system.files import atomic_file, atomic_write_json
from .figures import Figures, describe
from .map_options import MapOptions
from .maps import open_maps
from .overlay import Overlay, Reduced
from .provenance import Provenance, source_name
from .run_lengths import encode_rle

RESULT_SCHEMA_VERSION = 2
_SLUG_CHARACTERS = 60
_STEM_BYTES = 120
_DIGEST_CHARACTERS = 8
_NOTHING = MapOptions()


def write_results(
    out_dir: Path | str,
    stem: str,
    image: npt.NDArray[np.uint8] | Scene,
    segmentations: Sequence[Segmentation],
    source: Path | str | None = None,
    provenance: Provenance | None = None,
    rle: bool = False,
    maps: MapOptions = _NOTHING,
) -> list[Path]:
    """Write the segmentations of an image to files.

    The files in ``out_dir`` are masks, ``<stem>_overlay.png`` and, last, ``<stem>.json`` with the figures of
    ``describe`` and the names of the others. The masks of a photo or an array are ``<stem>_<phrase>_mask.png`` for each
    phrase (0 and 255, the image's size), where ``<phrase>`` ends with a digest; those of a raster are the bands of
    ``<stem>_masks.tif``, and their regions ``<stem>.geojson`` or ``maps.vector`` (see ``open_maps``). Each file is
    written atomically, and masks one after another, so memory use does not grow with the number of phrases.

    Args:
        out_dir: folder of the files, created if missing.
        stem: beginning of the file names.
        image: (H, W, 3) uint8 RGB, or a scene; of a large raster a reduced copy for the overlay.
        segmentations: segmentations of the image.
        source: file of the image. If ``out_dir`` holds results of another file with this stem, they are kept, and the
            new file names contain a digest of the source's path.
        provenance: added to the JSON file.
        rle: add COCO run lengths of each mask (``encode_rle``) to the JSON file; needs the whole mask in memory.
        maps: options of the files of a raster.

    Returns:
        Paths of the files: masks in the order of the phrases, for rasters the regions and probabilities, overlay, JSON.

    Raises:
        BadInputError: an option does not suit the image.
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    out_dir = Path(out_dir)
    scene = image if isinstance(image, Scene) else Scene(image)
    height, width = scene.size if scene.raster is None else segmentations[0].size
    maps.check_image(scene.raster, (height, width))
    path, key = (source_name(source), source_key(source)) if source is not None else (None, None)
    json_path = result_path(out_dir, stem, source)
    json_path.unlink(missing_ok=True)  # it is written last and vouches for the other files
    stem = json_path.stem
    overlay_path = out_dir / f"{stem}_overlay.png"
    overlay = Overlay(scene.image)
    if scene.raster is None:
        files = [out_dir / f"{stem}_{_slug(found.phrase)}_mask.png" for found in segmentations]
        results = _write_masks(files, segmentations, overlay)
    else:
        files = [out_dir / f"{stem}_masks.tif", maps.vector or out_dir / f"{stem}.geojson"]
        if maps.probability is not None:
            files.append(out_dir / f"{stem}_probability.tif")
        common = {"source": path, "bundle_sha256": provenance.bundle_sha256 if provenance is not None else None}
        results = _write_maps(files, scene.raster, segmentations, common, overlay, maps)
    if rle:
        for result, segmentation in zip(results, segmentations, strict=True):
            result["rle"] = encode_rle(segmentation.mask)
    _write_png(overlay_path, overlay.render())
    document = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "source": path,
        "source_key": key,
        "width": width,
        "height": height,
        "overlay_file": overlay_path.name,
        "provenance": provenance.to_dict() if provenance is not None else None,
        "results": results,
    }
    # With an indent, every coordinate of a polygon would take a line.
    atomic_write_json(json_path, document, indent=None)
    return [*files, overlay_path, json_path]


def _write_masks(
    files: Sequence[Path], segmentations: Sequence[Segmentation], overlay: Overlay
) -> list[dict[str, Any]]:
    """Write a mask for each phrase, draw it, and return the figures."""
    results = []
    for path, segmentation in zip(files, segmentations, strict=True):
        logits = segmentation.full_size_logits()
        _write_png(path, (logits > segmentation.cut_logit).astype(np.uint8) * np.uint8(255))
        figures = describe(segmentation, logits)
        overlay.add(segmentation.phrase, logits, figures["mean_probability"], segmentation.cut_logit)
        results.append(figures | {"mask_file": path.name})
    return results


def _write_maps(
    files: Sequence[Path],
    raster: RasterInfo,
    segmentations: Sequence[Segmentation],
    common: dict[str, Any],
    overlay: Overlay,
    options: MapOptions,
) -> list[dict[str, Any]]:
    """Write masks and regions of a raster, draw them, and return the figures."""
    results = []
    phrases = [segmentation.phrase for segmentation in segmentations]
    with open_maps(raster, segmentations[0].size, phrases, common, files, options) as maps:
        for band, segmentation in enumerate(segmentations, 1):
            figures, reduced = Figures(segmentation, segmentation.size), Reduced(segmentation.size)
            for top, logits in segmentation.strips():
                valid = None if segmentation.valid is None else segmentation.valid[top : top + len(logits)]
                maps.add(band, top, logits, valid, segmentation.cut_logit)
                figures.add(top, logits)
                reduced.add(top, logits)
            whole = not isinstance(segmentation, TiledSegmentation)
            measured = describe(segmentation, logits) if whole else figures.to_dict()
            results.append(measured | {"mask_file": files[0].name, "mask_band": band})
            mean, cut_logit = measured["mean_probability"], segmentation.cut_logit
            overlay.add(segmentation.phrase, reduced.logits, mean, cut_logit)
    for result, area_m2 in zip(results, maps.areas_m2, strict=False):
        result["area_m2"] = area_m2
    return results


def result_path(out_dir: Path, stem: str, source: Path | str | None) -> Path:
    """Return the path of the JSON file of a source: with a digest if another source's results have the stem."""
    path = out_dir / f"{_safe_stem(stem)}.json"
    if source is None or _key_of(path) in (None, key := source_key(source)):
        return path
    return path.with_name(f"{path.stem}-{key[:_DIGEST_CHARACTERS]}.json")


def source_key(source: Path | str) -> str:
    """Return a digest that identifies a source without showing its name."""
    # Of the whole name: two URLs may differ in their query alone.
    return _digest(str(source) if is_remote(str(source)) else source_name(source))


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _key_of(path: Path) -> str | None:
    """Return the key of the source in a JSON file of results: empty if it has none, ``None`` if there is no file."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return "" if path.exists() else None
    return str(document.get("source_key") or "") if isinstance(document, dict) else ""


def _slug(phrase: str) -> str:
    """Return a name for a phrase in ASCII letters, digits and hyphens; its digest tells similar phrases apart."""
    plain = unicodedata.normalize("NFKD", phrase).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:_SLUG_CHARACTERS].strip("-") or "phrase"
    return f"{slug}-{_digest(phrase)[:_DIGEST_CHARACTERS]}"


def _safe_stem(stem: str) -> str:
    """Return a stem that is one visible file name: no separators, no leading dot, at most 120 bytes."""
    short = os.fsencode(re.sub(r"[/\\\0]", "-", stem).lstrip("."))[:_STEM_BYTES]
    return short.decode(errors="ignore") or "image"


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    # OpenCV takes half of Pillow's time. It expects blue, green, red.
    _, data = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    with atomic_file(path, durable=False) as temporary:
        temporary.write_bytes(data.tobytes())
