"""Writes the masks of a raster as a cloud-optimised GeoTIFF, and their regions as GeoJSON."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import RSRefSegError
from ..images.rasters import gdal_errors, gdal_options, open_dataset
from ..images.scene import RasterInfo
from ..segmentation import sigmoid
from ..system.files import atomic_file
from .regions import PROBABILITY_STEPS, Placement, Region, regions

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

NODATA = 255
_BLOCK = 512
_PART_PIXELS = 1 << 22
_HEAD = b'{"type": "FeatureCollection", "features": ['


class Maps:
    """Takes the masks of one raster, phrase by phrase and strip by strip; ``open_maps`` makes it.

    Attributes:
        areas_m2: area of the mask of each phrase on the ellipsoid, once all is written; empty without a place on earth.
    """

    def __init__(self, masks: "DatasetWriter", probabilities: "DatasetWriter") -> None:
        self._masks, self._probabilities = masks, probabilities
        self.areas_m2: list[float] = []

    def add(
        self,
        band: int,
        top: int,
        logits: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_] | None,
        cut_logit: float = 0.0,
    ) -> None:
        """Write a strip of a phrase.

        Args:
            band: number of the phrase, from 1.
            top: first row of the strip.
            logits: (h, W) float32.
            valid: (h, W) bool, or ``None`` if all pixels are valid.
            cut_logit: the mask is where the logits are above it.
        """
        rows = max(1, _PART_PIXELS // logits.shape[1])
        for start in range(0, len(logits), rows):
            part = logits[start : start + rows]
            window = ((top + start, top + start + len(part)), (0, part.shape[1]))
            mask = (part > cut_logit).astype(np.uint8)
            usable = True if valid is None else valid[start : start + rows]
            self._masks.write(np.where(usable, mask, np.uint8(NODATA)), band, window=window)
            steps = np.rint(sigmoid(part.copy()) * PROBABILITY_STEPS).astype(np.uint16)
            self._probabilities.write(steps * mask, band, window=window)


@contextlib.contextmanager
def open_maps(
    raster: RasterInfo,
    size: tuple[int, int],
    phrases: Sequence[str],
    common: dict[str, Any],
    masks: Path,
    vectors: Path,
) -> Iterator[Maps]:
    """Yield the maps of a raster; at the end, write them atomically.

    The masks are one uint8 band for each phrase, described by it: 1 inside, 0 outside, 255 (nodata) where the raster
    holds no data. CRS, transform and size are the raster's. The regions are polygons in longitude and latitude (RFC
    7946), or in pixels if the raster has no place on earth.

    Args:
        raster: place of the raster.
        size: (H, W), px.
        phrases: the phrases that will be added.
        common: properties of all features.
        masks: path of the GeoTIFF.
        vectors: path of the GeoJSON file.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    import rasterio
    import rasterio.shutil

    profile = {
        "driver": "GTiff", "height": size[0], "width": size[1], "count": len(phrases), "crs": raster.crs,
        "transform": rasterio.Affine(*raster.transform), "interleave": "band", "tiled": True, "blockxsize": _BLOCK,
        "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1, "BIGTIFF": "YES",
    }  # fmt: skip
    with atomic_file(masks) as temporary, rasterio.Env(GDAL_PAM_ENABLED=False, **gdal_options()):
        # GDAL makes a cloud-optimised file from a finished one.
        plain, scores = temporary.with_name("masks.tif"), temporary.with_name("scores.tif")
        try:
            with (
                open_dataset(plain, "w", dtype="uint8", nodata=NODATA, **profile) as mask_bands,
                open_dataset(scores, "w", dtype="uint16", **profile) as score_bands,
            ):
                mask_bands.update_tags(**{name.upper(): value for name, value in common.items() if value is not None})
                for band, phrase in enumerate(phrases, 1):
                    mask_bands.set_band_description(band, _plain(phrase))
                maps = Maps(mask_bands, score_bands)
                yield maps
            with (
                open_dataset(plain) as mask_bands,
                open_dataset(scores) as score_bands,
                atomic_file(vectors, durable=False) as features,
            ):
                placement = Placement.of(raster, size)
                with features.open("wb") as stream:
                    stream.write(_HEAD)
                    areas = [
                        _write_features(stream, regions(mask_bands, score_bands, band, placement), phrase, common)
                        for band, phrase in enumerate(phrases, 1)
                    ]
                    stream.write(b"\n]}\n")
                # Before the features are renamed, so that both files change together.
                rasterio.shutil.copy(plain, temporary, driver="COG", compress="DEFLATE", overview_resampling="nearest")
            scores.unlink()
        except gdal_errors() as error:
            raise RSRefSegError(f"cannot write '{masks}': {' '.join(str(error).split())}") from error
    if placement.on_earth:
        maps.areas_m2 = [round(area, 2) for area in areas]


def _plain(phrase: str) -> str:
    """Return a phrase as GDAL takes it: UTF-8 without control characters."""
    text = phrase.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else " " for character in text)


def _write_features(stream: IO[bytes], found: Iterable[Region], phrase: str, common: dict[str, Any]) -> float:
    """Write the regions of a phrase as GeoJSON features, one a line; return their area in square metres."""
    area_m2 = 0.0
    for region in found:
        area_m2 += region.properties["area_m2"] or 0
        properties = {"phrase": phrase, **region.properties, **common}
        feature = {"type": "Feature", "geometry": region.geometry, "properties": properties}
        separator = "\n" if stream.tell() == len(_HEAD) else ",\n"
        stream.write((separator + json.dumps(feature, ensure_ascii=False)).encode("utf-8", "backslashreplace"))
    return area_m2
