"""Writes the masks of a raster as a cloud-optimised GeoTIFF, and their regions as GeoJSON."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import RSRefSegError
from ..images.rasters import gdal_errors
from ..images.scene import RasterInfo
from ..system.files import atomic_file, atomic_write_bytes
from .regions import Placement, regions

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

NODATA = 255
_BLOCK = 512


class Maps:
    """Masks and regions of one raster, phrase by phrase; ``open_maps`` makes and finishes it."""

    def __init__(self, bands: "DatasetWriter", placement: Placement, common: dict[str, Any]) -> None:
        self._bands, self._placement, self._common = bands, placement, common
        self._count = 0
        self.features: list[dict[str, Any]] = []

    def add(self, phrase: str, logits: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None) -> dict[str, Any]:
        """Write the mask of the next phrase, and add its regions to the features.

        Args:
            phrase: the phrase.
            logits: (H, W) float32, above 0 inside the mask.
            valid: (H, W) bool, or ``None`` if all pixels are valid.

        Returns:
            ``mask_band`` and, if the raster has a place on earth, ``area_m2``.
        """
        self._count += 1
        mask = (logits > 0).astype(np.uint8)
        self._bands.write(mask if valid is None else np.where(valid, mask, np.uint8(NODATA)), self._count)
        self._bands.set_band_description(self._count, phrase)
        found = list(regions(logits, self._placement))
        for region in found:
            properties = {"phrase": phrase, **region.properties, **self._common}
            self.features.append({"type": "Feature", "geometry": region.geometry, "properties": properties})
        areas = [region.properties["area_m2"] for region in found]
        return {"mask_band": self._count} | ({"area_m2": round(sum(areas), 2)} if self._placement.on_earth else {})


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
        "driver": "GTiff", "height": size[0], "width": size[1], "count": len(phrases), "dtype": "uint8",
        "nodata": NODATA, "crs": raster.crs, "transform": rasterio.Affine(*raster.transform), "interleave": "band",
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1, "BIGTIFF": "YES",
    }  # fmt: skip
    with atomic_file(masks) as temporary, rasterio.Env(GDAL_PAM_ENABLED=False):
        plain = temporary.with_name("bands.tif")  # GDAL makes a cloud-optimised file from a finished one
        placement = Placement.of(raster, size)
        try:
            with rasterio.open(plain, "w", **profile) as bands:
                bands.update_tags(**{name.upper(): str(value) for name, value in common.items()})
                maps = Maps(bands, placement, common)
                yield maps
            rasterio.shutil.copy(plain, temporary, driver="COG", compress="DEFLATE", overview_resampling="nearest")
        except gdal_errors() as error:
            raise RSRefSegError(f"cannot write '{masks}': {' '.join(str(error).split())}") from error
    collection = {"type": "FeatureCollection", "features": maps.features}
    text = json.dumps(collection, ensure_ascii=False) + "\n"
    atomic_write_bytes(vectors, text.encode("utf-8", "backslashreplace"))
