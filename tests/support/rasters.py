"""Rasters of the kinds that remote-sensing engineers have, written with rasterio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.transform import from_origin

DEGREES = {"crs": "EPSG:4326", "transform": from_origin(15, 37, 1e-5, 1e-5)}
UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_100_000, 0.5, 0.5)}
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
S2_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


class Stored(NamedTuple):
    """A raster as GDAL reads it: ``bands`` (B, H, W) and ``valid`` (H, W) bool."""

    path: Path
    bands: np.ndarray
    valid: np.ndarray


def write_raster(path: Path, bands: np.ndarray, descriptions: Sequence[str] = (), **profile: Any) -> Stored:
    """Write bands (B, H, W); by default a GeoTIFF in UTM."""
    base = {"driver": "GTiff", "count": len(bands), "dtype": bands.dtype, **UTM}
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **{**base, **profile}) as raster:
        raster.write(bands)
        for number, text in enumerate(descriptions, 1):
            raster.set_band_description(number, text)
    with rasterio.open(path) as raster:
        return Stored(path, raster.read(), raster.dataset_mask() > 0)


def colour_bands(side: int = 160) -> np.ndarray:
    """Three uint8 bands (3, side, side) with a gradient, a rectangle and noise."""
    rows, columns = np.mgrid[:side, :side] / side
    noise = np.random.default_rng(5).normal(scale=6, size=(3, side, side))
    bands = np.stack([60 + 120 * columns, 90 + 60 * rows, 140 - 70 * columns]) + noise
    bands[:, side // 4 : side // 2, side // 3 : side // 2] += 60
    return bands.round().clip(1, 254).astype(np.uint8)


def write_kind(name: str, path: Path) -> Stored:
    """Write the raster of a kind in ``KINDS``."""
    bands, profile, descriptions = KINDS[name]()
    return write_raster(path, bands, descriptions, **profile)


def _of(bands: np.ndarray, descriptions: Sequence[str] = (), **profile: Any) -> Any:
    return bands, profile, descriptions


def _u16() -> np.ndarray:
    return colour_bands().astype(np.uint16) * 257


def _reflectance() -> np.ndarray:
    return (colour_bands() / 255 * 2800 + 200).astype(np.uint16)


def _shares() -> np.ndarray:
    return colour_bands().astype(np.float32) / np.float32(255)


def _with(bands: np.ndarray, place: Any, value: float) -> np.ndarray:
    bands[place] = value
    return bands


def _sentinel2() -> np.ndarray:
    blue, green, red = _reflectance()[::-1]
    return np.stack([np.full_like(red, 7), blue, green, red, *[np.full_like(red, 9)] * 9])


_CORNER, _PIXEL, _BORDER = np.s_[:, :8, :8], np.s_[:, 0, 0], np.s_[:, :16]
KINDS: dict[str, Any] = {
    "planar uint16, LZW": lambda: _of(_u16(), compress="lzw", interleave="band"),
    "planar uint16, RGB": lambda: _of(_u16(), photometric="RGB", interleave="band"),
    "planar uint16, grey": lambda: _of(_u16(), interleave="band"),
    "planar float32, tiled": lambda: _of(_shares(), compress="deflate", interleave="band", **TILED),
    "sparse": lambda: _of(
        _with(colour_bands(), np.s_[:, 64:128, 64:128], 0), photometric="RGB", SPARSE_OK=True, **TILED
    ),
    "one bright pixel": lambda: _of(_with(_shares(), _PIXEL, 1.02)),
    "nodata 65535": lambda: _of(_with(_reflectance(), _PIXEL, 65535), nodata=65535),
    "one cloud": lambda: _of(_with(_reflectance(), _CORNER, 15800)),
    "SAR in dB": lambda: _of(_shares()[:1] * 25 - 30),
    "NaN": lambda: _of(_with(_shares(), _BORDER, np.nan), nodata=float("nan")),
    "RGB and near infrared": lambda: _of(np.concatenate([colour_bands(), 255 - colour_bands()[:1]])),
    "Sentinel-2": lambda: _of(_sentinel2(), S2_NAMES, compress="deflate"),
    "uint16, ZSTD": lambda: _of(_u16(), photometric="RGB", compress="zstd"),
    "COG, WebP": lambda: _of(colour_bands(), driver="COG", compress="webp", WEBP_LOSSLESS="YES", blocksize=128),
    "rotated": lambda: _of(colour_bands(), transform=rasterio.Affine(0.4, 0.3, 500_000, 0.3, -0.4, 4_100_000)),
    "large mosaic": lambda: _of(np.tile(colour_bands(), (1, 12, 12)), photometric="RGB", compress="deflate", **TILED),
    # Siblings: other types, interleaves, compressions, tilings and formats.
    "planar uint8": lambda: _of(colour_bands(), photometric="RGB", interleave="band"),
    "planar int16, tiled": lambda: _of(_reflectance().astype(np.int16), interleave="band", **TILED),
    "int32, LZW": lambda: _of(_reflectance().astype(np.int32), compress="lzw", predictor=2),
    "uint32": lambda: _of(_reflectance().astype(np.uint32) * 1000),
    "float64, planar": lambda: _of(_shares().astype(np.float64), compress="deflate", predictor=3, interleave="band"),
    "int8": lambda: _of((colour_bands() // 2).astype(np.int8)),
    "uint16, LERC": lambda: _of(_u16(), compress="lerc_zstd"),
    "float32, BigTIFF": lambda: _of(_shares(), BIGTIFF="YES"),
    "big-endian": lambda: _of(_u16(), ENDIANNESS="BIG"),
    "sparse uint16": lambda: _of(_with(_u16(), np.s_[:, :64, :64], 0), SPARSE_OK=True, compress="lzw", **TILED),
    "12 bits": lambda: _of(_u16() >> 4, NBITS=12, compress="deflate"),
    "nodata -9999": lambda: _of(_with(_shares(), _BORDER, -9999), nodata=-9999),
    "nodata 0 in uint8": lambda: _of(_with(colour_bands(), _CORNER, 0), nodata=0),
    "COG, uint16": lambda: _of(_reflectance(), driver="COG", compress="deflate", blocksize=128),
    "COG, JPEG": lambda: _of(colour_bands(), driver="COG", compress="jpeg", blocksize=128),
    "JPEG in YCbCr": lambda: _of(colour_bands(), compress="jpeg", photometric="YCBCR", **TILED),
    "JPEG 2000": lambda: _of(colour_bands(), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES"),
    "JPEG 2000, uint16": lambda: _of(_reflectance(), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES"),
    "PNG, uint16": lambda: _of(_u16(), driver="PNG", crs=None, transform=None),
    "NITF": lambda: _of(_reflectance(), driver="NITF", ICORDS="G", **DEGREES),
    "ENVI": lambda: _of(_shares(), driver="ENVI", interleave="bil"),
    "ERDAS": lambda: _of(_u16(), driver="HFA"),
    "one band": lambda: _of(_u16()[:1]),
    "no CRS": lambda: _of(_u16(), crs=None, transform=None),
}  # fmt: skip
SIXTEEN = tuple(KINDS)[:16]
