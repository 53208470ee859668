"""Writes the masks of a raster as a cloud-optimised GeoTIFF, their probabilities if asked for, and their regions."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import RSRefSegError
from ..images.rasters import gdal_errors, gdal_options, open_dataset
from ..images.scene import RasterInfo
from ..segmentation import sigmoid
from ..system.files import atomic_file
from .map_options import MapOptions
from .regions import PROBABILITY_STEPS, Placement, Region, regions
from .vectors import in_degrees, write_regions

if TYPE_CHECKING:
    from rasterio.io import DatasetReader, DatasetWriter

NODATA = 255
_BLOCK = 512
_PART_PIXELS = 1 << 22
_STEPS = 250  # of a probability as uint8
_NOTHING = MapOptions()
_PROBABILITY_PROFILES: dict[str, dict[str, Any]] = {
    "uint8": {"dtype": "uint8", "nodata": NODATA},
    "float": {"dtype": "float32", "nodata": float("nan")},
}


class Maps:
    """Takes the masks of one raster, phrase by phrase and strip by strip; ``open_maps`` makes it.

    Attributes:
        areas_m2: area of the mask of each phrase on the ellipsoid, once all is written; empty without a place on earth.
    """

    def __init__(
        self,
        masks: "DatasetWriter",
        inside: "DatasetWriter",
        scores: "DatasetWriter",
        probabilities: "DatasetWriter | None" = None,
    ) -> None:
        self._masks, self._inside, self._scores, self._probabilities = masks, inside, scores, probabilities
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
            self._inside.write(mask, band, window=window)
            shares = sigmoid(part.copy())
            steps = np.rint(shares * PROBABILITY_STEPS).astype(np.uint16)
            self._scores.write(steps * mask, band, window=window)
            if self._probabilities is not None:
                if self._probabilities.dtypes[0] == "uint8":
                    values = np.where(usable, np.rint(shares * _STEPS).astype(np.uint8), np.uint8(NODATA))
                else:
                    values = np.where(usable, shares, np.float32(np.nan))
                self._probabilities.write(values, band, window=window)


@contextlib.contextmanager
def open_maps(
    raster: RasterInfo,
    size: tuple[int, int],
    phrases: Sequence[str],
    common: dict[str, Any],
    files: Sequence[Path],
    options: MapOptions = _NOTHING,
) -> Iterator[Maps]:
    """Yield the maps of a raster; at the end, write them atomically.

    The masks are one uint8 band for each phrase, described by it: 1 inside, 0 outside, 255 (nodata) where the raster
    holds no data. CRS, transform and size are the raster's. The regions are polygons: GeoJSON in longitude and latitude
    (RFC 7946), other formats in the raster's CRS, all in pixels if the raster has no place on earth. Probabilities are
    uint8 with a scale of 0.004 and nodata 255, or float32 with nodata NaN.

    Args:
        raster: place of the raster.
        size: (H, W), px.
        phrases: the phrases that will be added.
        common: properties of all features.
        files: paths of the masks, of the regions and, if the options ask for them, of the probabilities.
        options: what is written.

    Raises:
        BadInputError: an option does not suit the raster.
        RSRefSegError: the disk is full or a folder cannot be written.
    """
    import rasterio

    options.check_image(raster, size)
    placement = Placement.of(raster, size)
    profile = {
        "driver": "GTiff", "height": size[0], "width": size[1], "count": len(phrases), "crs": raster.crs,
        "transform": rasterio.Affine(*raster.transform), "interleave": "band", "tiled": True, "blockxsize": _BLOCK,
        "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1, "BIGTIFF": "YES",
    }  # fmt: skip
    masks, vector, *probability = files
    tags = {name.upper(): value for name, value in common.items() if value is not None}
    with contextlib.ExitStack() as stack:
        finals = [stack.enter_context(atomic_file(path)) for path in (masks, *probability)]
        stack.enter_context(rasterio.Env(GDAL_PAM_ENABLED=False, **gdal_options()))
        # GDAL makes a cloud-optimised file from a finished one.
        names = ("masks", "inside", "scores", "shares")
        temporaries = [finals[0].with_name(f"{name}.tif") for name in names]
        plain, inside, scores, shares = temporaries
        try:
            with contextlib.ExitStack() as opened:
                mask_bands = opened.enter_context(open_dataset(plain, "w", dtype="uint8", nodata=NODATA, **profile))
                inside_bands = opened.enter_context(open_dataset(inside, "w", dtype="uint8", **profile))
                score_bands = opened.enter_context(open_dataset(scores, "w", dtype="uint16", **profile))
                share_bands = None
                if options.probability is not None:
                    kind = _PROBABILITY_PROFILES[options.probability]
                    share_bands = opened.enter_context(open_dataset(shares, "w", **kind, **profile))
                    if options.probability == "uint8":
                        share_bands.scales = (1 / _STEPS,) * len(phrases)
                for dataset in filter(None, (mask_bands, share_bands)):
                    dataset.update_tags(**tags)
                    for band, phrase in enumerate(phrases, 1):
                        dataset.set_band_description(band, _plain(phrase))
                maps = Maps(mask_bands, inside_bands, score_bands, share_bands)
                yield maps
            for source, final, resampling in zip((plain, shares), finals, ("nearest", "average"), strict=False):
                _copy_as_cog(source, final, resampling)
            areas = [0.0] * len(phrases)
            with open_dataset(inside) as inside_bands, open_dataset(scores) as score_bands:
                found = _features(inside_bands, score_bands, placement, phrases, common, options, areas, vector)
                write_regions(vector, found, raster.crs if placement.on_earth else None)
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
        except gdal_errors() as error:
            raise RSRefSegError(f"cannot write '{masks}': {' '.join(str(error).split())}") from error
    if placement.on_earth:
        maps.areas_m2 = [round(area, 2) for area in areas]


def _copy_as_cog(source: Path, path: Path, resampling: str) -> None:
    import rasterio.shutil

    rasterio.shutil.copy(
        source, path, driver="COG", compress="DEFLATE", bigtiff="IF_SAFER", overview_resampling=resampling
    )


def _plain(phrase: str) -> str:
    """Return a phrase as GDAL takes it: UTF-8 without control characters."""
    text = phrase.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else " " for character in text)


def _features(
    masks: "DatasetReader",
    scores: "DatasetReader",
    placement: Placement,
    phrases: Sequence[str],
    common: dict[str, Any],
    options: MapOptions,
    areas_m2: list[float],
    vector: Path,
) -> Iterator[Region]:
    """Yield the regions of all phrases with their properties; add their areas to those of the phrases."""
    for index, phrase in enumerate(phrases):
        for region in regions(masks, scores, index + 1, placement, in_degrees(vector), options.simplify_px):
            areas_m2[index] += region.properties["area_m2"] or 0
            if options.keeps(region):
                yield Region(region.geometry, {"phrase": phrase, **region.properties, **common})
