"""Image work on the host, the same for training and serving: read, stretch, bring logits back to the picture's size."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.errors import BadInputError

DEFAULT_MAX_PIXELS = 100_000_000
_ROWS_PER_BLOCK = 32


def read_image(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB, turned the right way up by its EXIF orientation.

    - Grey, palette, 1-bit and CMYK pictures are converted; embedded colour profiles are not applied; of several frames
      or pages the first is read.
    - Transparent pixels are composited over black: in overhead imagery alpha marks no-data, and no-data is black.
    - Values of more than 8 bits are scaled by 255 / (2^bits - 1) with the smallest usual depth of 8, 10, 11, 12, 14, 16
      bits that holds the picture's maximum, one factor for all bands. Floats within 0..1 are scaled by 255, others as
      integers are. Negative values become 0.
    - The size is checked from the header, before anything is decoded.

    Raises:
        BadInputError: the file is missing, a folder, empty, no image, corrupt or cut short, has more than 4 bands,
            values that are not finite or beyond 16 bits, or more than ``max_pixels`` pixels.
    """
    from engines.decode import decode_image

    if max_pixels < 1:
        raise BadInputError(f"the pixel limit must be at least 1, got {max_pixels}")
    return decode_image(Path(path), max_pixels)


def stretch(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Stretch a picture (H, W, 3) uint8 to the networks' square input (3, size, size) uint8.

    Bilinear without antialiasing and without keeping the aspect ratio: OpenCV's INTER_LINEAR, as in the published
    pipeline.
    """
    import cv2

    check_picture(image)
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def upsample_logits(
    logits: npt.NDArray[np.float32], stretched_size: int, original: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Bring mask logits (h, w) float32 to the picture's size (H, W) float32.

    Two bilinear steps with half-pixel centres and no antialiasing, as published: mask grid -> ``stretched_size`` square
    -> ``original`` (H, W). Equal to ``F.interpolate(mode="bilinear", align_corners=False)`` twice, down to its float32
    weights; OpenCV's differ by 2e-5 of the range.
    """
    return _bilinear(_bilinear(logits, (stretched_size, stretched_size)), original)


def check_picture(image: npt.NDArray[np.uint8]) -> None:
    """Refuse an array that is no (H, W, 3) uint8 picture with at least one pixel.

    Raises:
        BadInputError: naming the shape and dtype found.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise BadInputError(f"a picture must be (height, width, 3) uint8 RGB, got {list(image.shape)} {image.dtype}")


def _bilinear(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(h, w) to ``size`` (H, W)."""
    return _stretch_rows(_stretch_rows(values.T, size[1]).T, size[0])


def _stretch_rows(values: npt.NDArray[np.float32], height: int) -> npt.NDArray[np.float32]:
    """(h, w) to (height, w), by blocks of rows: each is a small matrix product with the few rows it comes from."""
    above, below, share = _taps(values.shape[0], height)
    resized = np.empty((height, values.shape[1]), np.float32)
    for start in range(0, height, _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        low, high = above[rows][0], below[rows][-1] + 1
        each = np.arange(len(above[rows]))
        weights = np.zeros((len(each), high - low), np.float32)
        weights[each, above[rows] - low] = 1 - share[rows]
        weights[each, below[rows] - low] += share[rows]
        np.matmul(weights, values[low:high], out=resized[rows])
    return resized


def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each target position the two source positions it lies between, and the second one's share, all in float32."""
    scale = np.float32(source) / np.float32(target)
    centre = np.maximum(
        scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0)
    )
    first = np.minimum(centre.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), centre - first.astype(np.float32)
