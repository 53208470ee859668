"""Image processing on the host, shared by training and inference: read images, stretch them, upsample logits."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ..errors import BadInputError
from .names import is_remote
from .scene import Scene

if TYPE_CHECKING:
    from .rasters import Raster

DEFAULT_MAX_PIXELS = 100_000_000
Resize = Literal["opencv", "pillow"]
_ROWS_PER_BLOCK = 32
_Blocks = tuple[tuple[slice, npt.NDArray[np.float32], slice], ...]


def read_scene(
    path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS, bands: str | None = None, stretch: str = "auto"
) -> Scene:
    """Read a photo or a raster as 8-bit RGB, with its valid pixels and, for a raster, its place on earth.

    Photos (PNG, JPEG, WebP, BMP, GIF, PPM of 8 bits a value) are read by Pillow and rotated by their EXIF orientation.
    Grey, palette, 1-bit and CMYK photos are converted; embedded colour profiles are not applied; only the first of
    several frames is read. Transparent pixels are composited over black, and fully transparent ones are invalid.

    Everything else is a raster and read by GDAL: its nodata values, mask bands, NaN and infinity are invalid pixels. An
    alpha band is a mask if it holds nothing but 0 and full scale. Invalid pixels become 0.

    Args:
        path: a file, or for rasters also a URL (``https://``, ``s3://``, ``gs://``), a ``/vsi`` path or a subdataset.
        max_pixels: larger images are refused before they are decoded.
        bands: three band numbers or descriptions for red, green and blue, or one for grey, e.g. ``B04,B03,B02``; by
            default the bands described or marked so, else the first three.
        stretch: ``auto`` keeps 8-bit values and scales others from the 2nd to the 98th percentile of each band's valid
            pixels; ``MIN,MAX``, ``sigma:N`` (mean and N standard deviations), ``none`` (clip to 0..255) or ``db``
            (decibels of a linear SAR intensity, then percentiles).

    Raises:
        BadInputError: the file is missing, a folder, empty, not an image, corrupt, cut short or too large, or bands or
            stretch cannot be used.
    """
    with open_scene(path, max_pixels, bands, stretch) as source:
        return source.read_all()


@contextlib.contextmanager
def open_scene(
    path: Path | str, max_pixels: int, bands: str | None = None, stretch: str = "auto", by_windows: bool = False
) -> Iterator["Raster | Scene"]:
    """Open a raster, or read a photo; see ``read_scene``. ``by_windows`` lifts the limit for rasters."""
    if max_pixels < 1:
        raise BadInputError(f"the pixel limit must be at least 1, got {max_pixels}")
    name = str(path)
    if not is_remote(name):
        from .photos import photo_kind, read_photo

        kind = photo_kind(Path(path))
        photo = read_photo(Path(path), kind, max_pixels) if kind is not None else None
        if photo is not None:
            if bands is not None or stretch not in ("auto", "none"):
                raise BadInputError(f"'{name}' is a photo: bands and stretch are chosen for rasters only")
            yield photo
            return
    from .rasters import open_raster

    with open_raster(name, None if by_windows else max_pixels, bands, stretch) as raster:
        yield raster


def read_image(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB; see ``read_scene``.

    Raises:
        BadInputError: the file cannot be read as an image, or has more than ``max_pixels`` pixels.
    """
    return read_scene(path, max_pixels).image


def stretch(
    image: npt.NDArray[np.uint8], size: int, resize: Resize = "opencv", keep_aspect: bool = False
) -> npt.NDArray[np.uint8]:
    """Stretch an image (H, W, 3) uint8 to the networks' square input (3, size, size) uint8.

    The resize is bilinear: without antialiasing (``opencv``, OpenCV's INTER_LINEAR, as in the published pipeline) or
    with it (``pillow``, Pillow's BILINEAR). With ``keep_aspect``, the long side gets ``size`` pixels and black pads the
    image at its right or bottom.

    Raises:
        BadInputError: the array has another shape or type.
    """
    import cv2
    from PIL import Image

    _check_image(image)
    height, width = network_size(image.shape[:2], size, keep_aspect)
    planes = np.empty((3, size, size), np.uint8)
    if resize == "pillow":
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    else:
        resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if (height, width) != (size, size):
        resized = np.pad(resized, ((0, size - height), (0, size - width), (0, 0)))
    cv2.split(resized, list(planes))
    return planes


def network_size(original: tuple[int, int], size: int, keep_aspect: bool) -> tuple[int, int]:
    """Return the (height, width) in px that an image of ``original`` (H, W) fills of the square input.

    With ``keep_aspect``, sides are rounded half up, as mmcv does.
    """
    if not keep_aspect:
        return size, size
    scale = size / max(original)
    height, width = (max(1, int(side * scale + 0.5)) for side in original)
    return height, width


def upsample_logits(
    logits: npt.NDArray[np.float32],
    stretched_size: int,
    original: tuple[int, int],
    rows: range | None = None,
    keep_aspect: bool = False,
) -> npt.NDArray[np.float32]:
    """Resize mask logits (h, w) float32 to the image's size (H, W) float32, or to some of its rows (len(rows), W).

    Two bilinear steps with half-pixel centres and no antialiasing, as published: mask grid -> ``stretched_size`` square
    -> ``original`` (H, W). With ``keep_aspect``, the padding of the square is cropped between them. Equal to
    ``F.interpolate(mode="bilinear", align_corners=False)`` twice, including its float32 weights, from which OpenCV's
    differ by 2e-5 of the range.
    """
    height, width = original
    filled = network_size(original, stretched_size, keep_aspect)
    wanted = range(height) if rows is None else rows
    down = _blocks(logits.shape[0], stretched_size, height, filled[0])[
        wanted.start // _ROWS_PER_BLOCK : -(-wanted.stop // _ROWS_PER_BLOCK)
    ]
    # Of the grid, only the rows that are summed.
    first = down[0][2].start
    across = _resize(logits[first : down[-1][2].stop].T, _blocks(logits.shape[1], stretched_size, width, filled[1])).T
    above = down[0][0].start
    inside = tuple((_moved(block, above), weights, _moved(taken, first)) for block, weights, taken in down)
    return _resize(across, inside)[wanted.start - above : wanted.stop - above]


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise BadInputError(f"an image must be (height, width, 3) uint8 RGB, got {list(image.shape)} {image.dtype}")


def _resize(values: npt.NDArray[np.float32], blocks: _Blocks) -> npt.NDArray[np.float32]:
    """Resize the rows of (h, w) by the weights of ``_blocks``."""
    resized = np.empty((blocks[-1][0].stop, values.shape[1]), np.float32)
    for rows, weights, source in blocks:
        np.matmul(weights, values[source], out=resized[rows])
    return resized


def _moved(rows: slice, up: int) -> slice:
    return slice(rows.start - up, rows.stop - up)


@functools.lru_cache(maxsize=16)  # consecutive phrases, and often images, have the same size
def _blocks(source: int, between: int, height: int, filled: int) -> _Blocks:
    """Return the weights of a resize source -> between, cropped to ``filled`` -> height, in one step.

    For each block of target rows: the rows, their weights (rows, n), and the n source rows they sum.
    """
    blocks = []
    for start in range(0, height, _ROWS_PER_BLOCK):
        rows = slice(start, min(start + _ROWS_PER_BLOCK, height))
        second, middle = _weights(filled, height, rows)
        first, taken = _weights(source, between, middle)
        blocks.append((rows, second @ first, taken))
    return tuple(blocks)


def _weights(source: int, target: int, rows: slice) -> tuple[npt.NDArray[np.float32], slice]:
    """Return the weights (rows, n) of some target rows, and the n source rows they sum."""
    above, below, share = _taps(source, target, rows)
    low, high = int(above[0]), int(below[-1]) + 1
    each = np.arange(len(above))
    weights = np.zeros((len(each), high - low), np.float32)
    weights[each, above - low] = 1 - share
    weights[each, below - low] += share
    return weights, slice(low, high)


def _taps(
    source: int, target: int, rows: slice
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the two source rows around each target row, and the weight of the second, in float32."""
    scale = np.float32(source) / np.float32(target)
    centre = np.maximum(
        scale * (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0)
    )
    first = np.minimum(centre.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), centre - first.astype(np.float32)
