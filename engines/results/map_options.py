"""What is written for a raster besides its masks."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInputError
from ..images.scene import RasterInfo
from .regions import Placement, Region
from .vectors import check_vector_file


@dataclass(frozen=True, slots=True)
class MapOptions:
    """Options of the files of a raster.

    Attributes:
        probability: also write the probabilities: ``uint8``, in steps of 0.004, or ``float``.
        vector: file of the regions, in the format of its suffix; by default GeoJSON beside the masks.
        simplify_px: largest distance of the outlines from the exact ones, px; 0 keeps them.
        min_area: leave out smaller regions, e.g. ``50m2`` or ``20px``.

    Raises:
        BadInputError: a value cannot be used.
        MissingPartError: the vector format needs pyogrio, which is not installed.
    """

    probability: str | None = None
    vector: Path | None = None
    simplify_px: float = 0
    min_area: str | None = None

    def __post_init__(self) -> None:
        if self.probability not in (None, "uint8", "float"):
            raise BadInputError(f"'{self.probability}' is not a type of probabilities: use uint8 or float")
        if self.vector is not None:
            check_vector_file(self.vector)
        if not 0 <= self.simplify_px < float("inf"):
            raise BadInputError(f"--simplify takes a distance in pixels of at least 0, got {self.simplify_px:g}")
        if self.min_area is not None and re.fullmatch(r"\d+(\.\d+)?(m2|px)", self.min_area) is None:
            raise BadInputError(f"'{self.min_area}' is not an area: give it as 50m2 or 20px")

    def check_image(self, raster: RasterInfo | None, size: tuple[int, int]) -> None:
        """Check that the options suit an image of ``size`` (H, W), px; ``raster`` is ``None`` for a photo.

        Raises:
            BadInputError: a photo has no maps, or areas are in square metres and the raster has no place on earth.
        """
        if raster is None and self != MapOptions():
            raise BadInputError("a photo has no maps: --probability, --vector, --simplify and --min-area need a raster")
        in_metres = self.min_area is not None and self.min_area.endswith("m2")
        if raster is not None and in_metres and not Placement.of(raster, size).on_earth:
            raise BadInputError(f"the raster has no place on earth: give --min-area in px, not {self.min_area}")

    def keeps(self, region: Region) -> bool:
        """Return whether a region is large enough; one without an area in square metres is."""
        if self.min_area is None:
            return True
        area = region.properties[f"area_{self.min_area[-2:]}"]
        return area is None or bool(area >= float(self.min_area[:-2]))
