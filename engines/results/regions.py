"""The connected regions of a mask as polygons, with their scores and areas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..images.rasters import gdal_errors
from ..images.scene import RasterInfo
from .simplify import simplified

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Points = npt.NDArray[np.float64]  # (N, 2)
_DEGREES = "EPSG:4326"
PROBABILITY_STEPS = 65535
_STRIP_PIXELS = 1 << 22
_DECIMALS = 8  # of degrees: about a millimetre


class Region(NamedTuple):
    """A connected region and its properties, such as the ``score``, ``area_px`` and ``area_m2`` of its pixels.

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

    def area_m2(self, rings: list[Points]) -> float | None:
        """Return the area of a polygon in pixels on the ellipsoid, m2; ``None`` if it cannot be projected."""
        projected = self._in(self.equal_area, rings) if self.equal_area is not None else None
        return None if projected is None else _area(projected)

    def geometry(self, rings: list[Points], in_degrees: bool) -> dict[str, Any] | None:
        """Return a polygon in pixels as a GeoJSON geometry.

        Its coordinates are longitude and latitude or, without ``in_degrees``, in the raster's CRS; in pixels without a
        place on earth. ``None`` if a point is outside the domain of the projection, such as the corners of a full-disc
        image.
        """
        if not self.on_earth:
            return _polygon(rings)
        placed = self._in(_DEGREES if in_degrees else self.raster.crs, rings)
        if placed is None or not in_degrees:
            return None if placed is None else _polygon(placed)
        degrees = [ring.round(_DECIMALS) for ring in placed]
        longitudes = np.concatenate(degrees)[:, 0]
        beyond = np.abs(longitudes).max() > 180 or np.ptp(longitudes) > 180
        metres = self._in(self.equal_area, rings) if beyond else None
        return _polygon(degrees) if metres is None else _cut_at_antimeridian(metres, self.equal_area)

    def _in(self, crs: str | None, rings: list[Points]) -> list[Points] | None:
        placed = [_placed(ring, self.raster.transform) for ring in rings]
        own = self.raster.crs
        if own is None or crs is None or crs == own:
            return placed
        try:
            projected = [_projected(ring, own, crs) for ring in placed]
        except gdal_errors():
            return None
        return projected if all(np.isfinite(ring).all() for ring in projected) else None


def regions(
    masks: "DatasetReader",
    probabilities: "DatasetReader",
    band: int,
    placement: Placement,
    in_degrees: bool = True,
    simplify_px: float = 0,
) -> Iterator[Region]:
    """Yield the regions of a mask that are connected by pixel edges.

    Args:
        masks: dataset whose ``band`` is 1 inside the mask, 0 elsewhere.
        probabilities: dataset of the probabilities times 65535 inside the mask, 0 elsewhere.
        band: number of the band in both.
        placement: place of the pixels.
        in_degrees: see ``Placement.geometry``.
        simplify_px: see ``simplified``.

    Yields:
        Regions whose outer rings run counter-clockwise and whose holes run clockwise. ``score`` is the mean probability
        of the pixels; ``area_m2`` is the area on the ellipsoid, ``None`` without a place on earth. Both are those of
        the exact outline.
    """
    import rasterio
    from rasterio.features import shapes

    to_pixels = tuple(~masks.transform)[:6]  # GDAL applies the transform
    source = rasterio.band(masks, band)
    for shape, _ in shapes(source, mask=source, connectivity=4):
        outlines = [_placed(np.asarray(ring), to_pixels).round() for ring in shape["coordinates"]]
        area_px, area_m2 = _area(outlines), placement.area_m2(outlines)
        properties = {
            "score": round(_total_probability(probabilities, band, outlines) / area_px, 4),
            "area_px": round(area_px),
            "area_m2": None if area_m2 is None else round(area_m2, 2),
        }
        yield Region(placement.geometry(simplified(outlines, simplify_px), in_degrees), properties)


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


def _polygon(rings: list[Points]) -> dict[str, Any]:
    """Return rings as a GeoJSON polygon: the outer ring counter-clockwise, holes clockwise."""
    wrong_ways = [(_signed_area(ring) > 0) == (number > 0) for number, ring in enumerate(rings)]
    turned = [ring[::-1] if wrong_way else ring for ring, wrong_way in zip(rings, wrong_ways, strict=True)]
    return {"type": "Polygon", "coordinates": [ring.tolist() for ring in turned]}


def _cut_at_antimeridian(metres: list[Points], plane: str | None) -> dict[str, Any]:
    """Return a polygon of a plane with longitudes from -180 to 180, cut in parts at the antimeridian (RFC 7946)."""
    from rasterio.warp import transform_geom

    # From a plane, because GDAL cuts nothing that is in longitude and latitude.
    cut = transform_geom(plane, _DEGREES, _polygon(metres), antimeridian_cutting=True)
    polygons = [cut["coordinates"]] if cut["type"] == "Polygon" else cut["coordinates"]
    parts = [_polygon([np.asarray(ring).round(_DECIMALS) for ring in rings])["coordinates"] for rings in polygons]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _area(rings: list[Points]) -> float:
    """Return the area of a polygon of outer ring and holes."""
    outer, *holes = (abs(_signed_area(ring)) for ring in rings)
    return outer - sum(holes)


def _signed_area(ring: Points) -> float:
    """Return the area of a closed ring, positive if it runs counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
