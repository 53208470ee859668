"""The connected regions of a mask as polygons, with their scores and areas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..images.rasters import gdal_errors
from ..images.scene import RasterInfo
from ..segmentation import sigmoid

Points = npt.NDArray[np.float64]  # (N, 2)
_DEGREES = "EPSG:4326"
_DECIMALS = 8  # of degrees: about a millimetre


class Region(NamedTuple):
    """A connected region: GeoJSON geometry, and ``score``, ``area_px`` and ``area_m2`` of its pixels."""

    geometry: dict[str, Any]
    properties: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Placement:
    """Maps pixels to longitude and latitude and to an equal-area plane.

    Attributes:
        raster: CRS and transform.
        equal_area: PROJ string of an equal-area projection in metres, centred on the raster; ``None`` if the raster has
            no place on earth.
    """

    raster: RasterInfo
    equal_area: str | None

    @classmethod
    def of(cls, raster: RasterInfo, size: tuple[int, int]) -> "Placement":
        """Return the placement of a raster of ``size`` (H, W)."""
        if raster.crs is None:
            return cls(raster, None)
        try:
            ((longitude, latitude),) = _projected(_placed(np.array([size[::-1]]) / 2, raster), raster.crs, _DEGREES)
        except gdal_errors():  # a local or planetary CRS
            return cls(raster, None)
        if not np.isfinite([longitude, latitude]).all():
            return cls(raster, None)
        return cls(raster, f"+proj=laea +lat_0={latitude:.6f} +lon_0={longitude:.6f} +datum=WGS84 +units=m")

    @property
    def on_earth(self) -> bool:
        """Whether pixels can be mapped to longitude and latitude."""
        return self.equal_area is not None

    def locate(self, pixels: Points) -> tuple[Points, Points]:
        """Return longitudes and latitudes of points (N, 2) of columns and rows, and their place in metres."""
        if self.equal_area is None or self.raster.crs is None:
            return pixels, pixels
        placed = _placed(pixels, self.raster)
        degrees = _projected(placed, self.raster.crs, _DEGREES).round(_DECIMALS)
        return degrees, _projected(placed, self.raster.crs, self.equal_area)


def regions(logits: npt.NDArray[np.float32], placement: Placement) -> Iterator[Region]:
    """Yield the regions of a mask that are connected by pixel edges.

    Args:
        logits: (H, W) float32, above 0 inside the mask.
        placement: place of the pixels.

    Yields:
        Regions whose outer rings run counter-clockwise and whose holes run clockwise. ``score`` is the mean probability
        of the pixels; ``area_m2`` is the area on the ellipsoid, ``None`` without a place on earth.
    """
    from rasterio.features import shapes

    mask = logits > 0
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    if count == 1:
        return
    places = labels[mask]
    area_px = np.bincount(places, minlength=count)
    scores = np.bincount(places, sigmoid(logits[mask]), minlength=count) / np.maximum(area_px, 1)
    for shape, label in shapes(labels, mask=mask, connectivity=4):
        rings, area_m2 = [], 0.0
        for number, ring in enumerate(shape["coordinates"]):
            degrees, metres = placement.locate(np.asarray(ring, np.float64))
            area_m2 += abs(_signed_area(metres)) * (-1 if number else 1)
            wrong_way = (_signed_area(degrees) > 0) == (number > 0)
            rings.append(degrees[::-1].tolist() if wrong_way else degrees.tolist())
        properties = {
            "score": round(float(scores[int(label)]), 6),
            "area_px": int(area_px[int(label)]),
            "area_m2": round(area_m2, 2) if placement.on_earth else None,
        }
        yield Region({"type": "Polygon", "coordinates": rings}, properties)


def _placed(pixels: Points, raster: RasterInfo) -> Points:
    """Return the points in the raster's CRS."""
    a, b, c, d, e, f = raster.transform
    return pixels @ np.array([[a, d], [b, e]]) + np.array([c, f])


def _projected(points: Points, source: str, target: str) -> Points:
    """Return points in another CRS; axes are x and y, or longitude and latitude."""
    from rasterio.warp import transform

    return np.array(transform(source, target, points[:, 0], points[:, 1])).T


def _signed_area(ring: Points) -> float:
    """Return the area of a closed ring, positive if it runs counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
