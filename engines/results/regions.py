"""The connected regions of a mask as polygons, with their scores and areas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..images.rasters import gdal_errors
from ..images.scene import RasterInfo

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Points = npt.NDArray[np.float64]  # (N, 2)
_DEGREES = "EPSG:4326"
PROBABILITY_STEPS = 65535
_STRIP_PIXELS = 1 << 22
_DECIMALS = 8  # of degrees: about a millimetre


class Region(NamedTuple):
    """A connected region and the ``score``, ``area_px`` and ``area_m2`` of its pixels.

    Attributes:
        geometry: GeoJSON geometry; ``None`` if a point is outside the domain of the projection.
        properties: the figures.
    """

    geometry: dict[str, Any] | None
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
            ((longitude, latitude),) = _projected(
                _placed(np.array([size[::-1]]) / 2, raster.transform), raster.crs, _DEGREES
            )
        except gdal_errors():  # a local or planetary CRS
            return cls(raster, None)
        if not np.isfinite([longitude, latitude]).all():
            return cls(raster, None)
        return cls(raster, f"+proj=laea +lat_0={latitude:.6f} +lon_0={longitude:.6f} +datum=WGS84 +units=m")

    @property
    def on_earth(self) -> bool:
        """Whether pixels can be mapped to longitude and latitude."""
        return self.equal_area is not None

    def locate(self, pixels: Points) -> tuple[Points, Points] | None:
        """Return longitudes and latitudes of points (N, 2) of columns and rows, and their place in metres.

        ``None`` if a point is outside the domain of a projection, such as the corners of a full-disc image.
        """
        if self.equal_area is None or self.raster.crs is None:
            return pixels, pixels
        placed = _placed(pixels, self.raster.transform)
        try:
            degrees = _projected(placed, self.raster.crs, _DEGREES).round(_DECIMALS)
            metres = _projected(placed, self.raster.crs, self.equal_area)
        except gdal_errors():
            return None
        return (degrees, metres) if np.isfinite([degrees, metres]).all() else None


def regions(
    masks: "DatasetReader", probabilities: "DatasetReader", band: int, placement: Placement
) -> Iterator[Region]:
    """Yield the regions of a mask that are connected by pixel edges.

    Args:
        masks: dataset whose ``band`` is 1 inside the mask.
        probabilities: dataset of the probabilities times 65535.
        band: number of the band in both.
        placement: place of the pixels.

    Yields:
        Regions whose outer rings run counter-clockwise and whose holes run clockwise. ``score`` is the mean probability
        of the pixels; ``area_m2`` is the area on the ellipsoid, ``None`` without a place on earth.
    """
    import rasterio
    from rasterio.features import shapes

    source, to_pixels = rasterio.band(masks, band), tuple(~masks.transform)[:6]  # GDAL applies the transform
    for shape, value in shapes(source, mask=source, connectivity=4):
        if value != 1:
            continue
        rings, outlines, area_px, area_m2, on_earth = [], [], 0.0, 0.0, True
        for number, ring in enumerate(shape["coordinates"]):
            pixels = _placed(np.asarray(ring), to_pixels).round()
            outlines.append(pixels)
            sign = -1 if number else 1
            area_px += abs(_signed_area(pixels)) * sign
            located = placement.locate(pixels)
            if located is None:
                on_earth = False
                continue
            degrees, metres = located
            area_m2 += abs(_signed_area(metres)) * sign
            wrong_way = (_signed_area(degrees) > 0) == (number > 0)
            rings.append(degrees[::-1].tolist() if wrong_way else degrees.tolist())
        properties = {
            "score": round(_total_probability(probabilities, band, outlines) / area_px, 4),
            "area_px": round(area_px),
            "area_m2": round(area_m2, 2) if placement.on_earth and on_earth else None,
        }
        yield Region({"type": "Polygon", "coordinates": rings} if on_earth else None, properties)


def _total_probability(probabilities: "DatasetReader", band: int, outlines: list[Points]) -> float:
    """Return the sum of the probabilities of the pixels in a polygon of outer ring and holes, read in strips."""
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    shape = {"type": "Polygon", "coordinates": [outline.tolist() for outline in outlines]}
    left, top, right, bottom = map(int, (*outlines[0].min(axis=0), *outlines[0].max(axis=0)))
    rows, total = max(1, _STRIP_PIXELS // (right - left)), 0
    for start in range(top, bottom, rows):
        end = min(start + rows, bottom)
        values = probabilities.read(band, window=((start, end), (left, right)))
        inside = rasterize([shape], values.shape, transform=Affine.translation(left, start), dtype=np.uint8)
        total += int(values.sum(where=inside > 0, dtype=np.uint64))
    return total / PROBABILITY_STEPS


def _placed(points: Points, transform: tuple[float, ...]) -> Points:
    """Apply an affine transform."""
    a, b, c, d, e, f = transform
    return np.asarray(points @ np.array([[a, d], [b, e]]) + np.array([c, f]))


def _projected(points: Points, source: str, target: str) -> Points:
    """Return points in another CRS; axes are x and y, or longitude and latitude."""
    from rasterio.warp import transform

    return np.array(transform(source, target, points[:, 0], points[:, 1])).T


def _signed_area(ring: Points) -> float:
    """Return the area of a closed ring, positive if it runs counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
