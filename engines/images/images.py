"""Image processing on the host, shared by training and inference: read images, stretch them, upsample logits."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import BadInputError

DEFAULT_MAX_PIXELS = 100_000_000
_ROWS_PER_BLOCK = 32


def read_image(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB, rotated by its EXIF orientation.

    - Grey, palette, 1-bit and CMYK images are converted; embedded colour profiles are not applied; only the first of
      several frames or pages is read.
    - Transparent pixels are composited over black: in overhead imagery alpha marks no-data, and no-data is black.
    - Values of more than 8 bits are scaled by 255 / (2^bits - 1) with the smallest depth out of 8, 10, 11, 12, 14, 16
      bits that holds the image's maximum, one factor for all bands. Floats within 0..1 are scaled by 255, others as
      integers are. Negative values become 0.
    - The size in the header is checked before decoding.

    Raises:
        BadInputError: the file is missing, a folder, empty, not an image, corrupt or cut short, has more than 4 bands,
            values that are not finite or beyond 16 bits, or more than ``max_pixels`` pixels.
    """
    from .decode import decode_image

    if max_pixels < 1:
        raise BadInputError(f"the pixel limit must be at least 1, got {max_pixels}")
    return decode_image(Path(path), max_pixels)


def stretch(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Stretch an image (H, W, 3) uint8 to the networks' square input (3, size, size) uint8.

    The resize is bilinear, without antialiasing and without keeping the aspect ratio: OpenCV's INTER_LINEAR, as in the
    published pipeline.

    Raises:
        BadInputError: the array has another shape or type.
    """
    import cv2

    _check_image(image)
    planes = np.empty((3, size, size), np.uint8)
    cv2.split(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), list(planes))
    return planes


def upsample_logits(
    logits: npt.NDArray[np.float32], stretched_size: int, original: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Resize mask logits (h, w) float32 to the image's size (H, W) float32.

    Two bilinear steps with half-pixel centres and no antialiasing, as published: mask grid -> ``stretched_size`` square
    -> ``original`` (H, W). Equal to ``F.interpolate(mode="bilinear", align_corners=False)`` twice, including its
    float32 weights, from which OpenCV's differ by 2e-5 of the range.
    """
    height, width = original
    return _stretch_rows(_stretch_rows(logits.T, stretched_size, width).T, stretched_size, height)


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise BadInputError(f"an image must be (height, width, 3) uint8 RGB, got {list(image.shape)} {image.dtype}")


def _stretch_rows(values: npt.NDArray[np.float32], between: int, height: int) -> npt.NDArray[np.float32]:
    """Resize (h, w) -> (between, w) -> (height, w) in one step, without the intermediate array."""
    resized = np.empty((height, values.shape[1]), np.float32)
    for rows, weights, source in _blocks(values.shape[0], between, height):
        np.matmul(weights, values[source], out=resized[rows])
    return resized


@functools.lru_cache(maxsize=16)  # consecutive phrases, and often images, have the same size
def _blocks(source: int, between: int, height: int) -> tuple[tuple[slice, npt.NDArray[np.float32], slice], ...]:
    """Return for each block of target rows: the rows, their weights (rows, n), and the n source rows they sum."""
    blocks = []
    for start in range(0, height, _ROWS_PER_BLOCK):
        rows = slice(start, min(start + _ROWS_PER_BLOCK, height))
        second, middle = _weights(between, height, rows)
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
