"""An image as the network takes it, and what is known about the file it comes from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..records import Record
from .tiles import Window


class RasterInfo(Record, frozen=True):
    """Where a raster lies, and how its values became RGB.

    Attributes:
        crs: coordinate reference system as WKT; ``None`` if the file names none.
        transform: affine ``(a, b, c, d, e, f)``: x = a * column + b * row + c, y = d * column + e * row + f.
        bands: numbers of the bands taken as red, green and blue, from 1; one number for grey.
        descriptions: their descriptions in the file, empty where there is none.
        stretch: how values became 8 bits, e.g. ``2-98 percent``.
        limits: for each band the two values that became 0 and 255; empty if values were not scaled.
        notes: what a user should know about these choices, one line each.
    """

    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    bands: tuple[int, ...]
    descriptions: tuple[str, ...]
    stretch: str
    limits: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and its valid pixels.

    Attributes:
        image: (H, W, 3) uint8 RGB; 0 in invalid pixels.
        valid: (H, W) bool, False where the file holds no data (nodata, NaN, masked or transparent); ``None`` if all
            pixels are valid.
        raster: ``None`` for photos.
    """

    image: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_] | None = None
    raster: RasterInfo | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.image.shape[0], self.image.shape[1]

    def read_all(self) -> "Scene":
        """Return the scene, as ``Raster.read_all`` does."""
        return self

    def reduced(self, longest: int) -> "Scene":
        """Return the scene unchanged: its pixels are in memory already."""
        return self

    def read(self, window: Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return a window as (h, w, 3) uint8 RGB, and its valid pixels (h, w) bool."""
        part = tuple(slice(*span) for span in window)
        image = self.image[part]
        return image, np.ones(image.shape[:2], np.bool_) if self.valid is None else self.valid[part]
