"""Decodes image files of common formats to uint8 RGB, and names the problem of each file it cannot read."""

import contextlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import BadInputError
from .tiff import TiffHeader, read_tiff_header

# Pillow's other formats are excluded: some start helper programs (EPS), and none is used for overhead imagery.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "JPEG2000", "BMP", "GIF", "PPM")
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"RIFF": "WEBP",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
_BIT_DEPTHS = (8, 10, 11, 12, 14, 16)  # of sensors and their products
_MAX_BANDS = 4
_process_wide_lock = threading.Lock()

Pixels = npt.NDArray[Any]


def decode_image(path: Path, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decode the image in ``path`` to (H, W, 3) uint8 RGB; see ``read_image``.

    Raises:
        BadInputError: the file is not a readable image, or larger than ``max_pixels``.
    """
    with _opened(path) as stream:
        prefix = stream.read(16)
        if not prefix:
            raise BadInputError(f"the image '{path}' is empty (0 bytes)")
        kind = next((kind for signature, kind in _SIGNATURES.items() if prefix.startswith(signature)), None)
        tiff = _check_tiff(path, stream, max_pixels) if kind == "TIFF" else None
        try:
            return _decode(path, stream, max_pixels, tiff)
        except BadInputError:
            raise
        except UnidentifiedImageError as error:
            if tiff is not None:
                return to_rgb8(path, *_decode_with_opencv(path, stream, tiff))
            if kind is not None:
                raise _corrupt(path, kind) from error
            raise BadInputError(
                f"'{path}' is not an image of a supported format: use PNG, JPEG, TIFF, WebP, JPEG 2000, BMP, GIF or PPM"
            ) from error
        except MemoryError as error:
            raise BadInputError(f"not enough memory to decode the image '{path}'") from error
        except Exception as error:  # decoders raise almost anything on broken bytes
            raise _corrupt(path, kind or "image", error) from error


def to_rgb8(path: Path, pixels: Pixels, alpha: Pixels | None) -> npt.NDArray[np.uint8]:
    """Convert grey (H, W) or colour (H, W, 3) values of any dtype to (H, W, 3) uint8, composited over black.

    Raises:
        BadInputError: a value is not finite, or beyond 16 bits.
    """
    colours = _to_8_bits(path, pixels)
    if alpha is not None:
        opacity = _to_8_bits(path, alpha).astype(np.uint16)
        opacity = opacity if colours.ndim == 2 else opacity[..., None]
        colours = ((colours * opacity + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=2))


def _decode(path: Path, stream: IO[bytes], max_pixels: int, tiff: TiffHeader | None) -> npt.NDArray[np.uint8]:
    with _without_pillow_limit():
        image = Image.open(stream, formats=_FORMATS)
    _check_size(path, image.width, image.height, max_pixels)
    huge = Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS
    with _without_pillow_limit() if huge else contextlib.nullcontext():
        deep = image.mode in ("RGB", "RGBA", "RGBX") and any(";16" in str(tile[3]) for tile in image.tile)
        image.load()  # before OpenCV, which accepts a truncated image silently
    turn = _orientation(image)
    if deep:  # Pillow keeps the high byte only, which makes 12-bit images almost black
        pixels, alpha = _decode_with_opencv(path, stream, tiff)
    else:
        pixels, alpha = _pillow_pixels(path, image)
    rgb = to_rgb8(path, pixels, alpha)
    return np.ascontiguousarray(_turned(rgb, turn))


def _pillow_pixels(path: Path, image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return colour or grey values, and opacity if the image has any."""
    if image.mode.startswith(("I", "F")):
        return np.array(image), None
    if image.has_transparency_data:
        bands = np.array(image.convert("RGBA"))
        return bands[..., :3], bands[..., 3]
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB")), None
    except ValueError as error:
        raise BadInputError(f"the colour mode {image.mode} of '{path}' is not supported: save it as RGB") from error


def _decode_with_opencv(path: Path, stream: IO[bytes], tiff: TiffHeader | None) -> tuple[Pixels, Pixels | None]:
    """Return colour and opacity of pixel types that Pillow lacks: 16-bit colour, float colour, 64-bit floats."""
    import cv2

    stream.seek(0)
    data = bytearray(stream.read())
    if tiff is not None and tiff.unmarked:
        position, rgb = tiff.rgb_patch
        data[position : position + len(rgb)] = rgb
    try:
        with _without_opencv_log():
            bands = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        bands = None
    if bands is None:
        raise BadInputError(f"the image '{path}' is corrupt, cut short or unsupported: save it as 8 or 16-bit RGB")
    if bands.ndim == 2:
        return bands, None
    opacity = bands.shape[2] == _MAX_BANDS and (tiff is None or tiff.opacity)
    return bands[..., 2::-1], bands[..., 3] if opacity else None


def _to_8_bits(path: Path, values: Pixels) -> npt.NDArray[np.uint8]:
    """Scale values to 8 bits from the smallest common bit depth that holds their maximum, or floats from 0..1."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadInputError(
            f"the image '{path}' holds values that are not finite (NaN or infinity): replace them first"
        )
    highest = values.max().item()
    if values.dtype.kind == "f" and highest <= 1:
        full = 1
    else:
        full = next((2**bits - 1 for bits in _BIT_DEPTHS if highest <= 2**bits - 1), 0)
        if not full:
            raise BadInputError(
                f"the image '{path}' holds values up to {highest:g}, beyond 16 bits: rescale it to 0..65535"
            )
    if values.dtype == np.uint16:
        return np.take(_scaled(np.arange(2**16), full), values)
    return _scaled(values, full)


def _scaled(values: Pixels, full: int) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[Any] = np.rint(np.clip(values, 0, full).astype(np.float32) * np.float32(255 / full))
    return rounded.astype(np.uint8)


def _check_tiff(path: Path, stream: IO[bytes], max_pixels: int) -> TiffHeader:
    """Read the header of a TIFF; reject one that is too large or whose bands are not grey or colour."""
    try:
        header = read_tiff_header(stream)
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise _corrupt(path, "TIFF", error) from error
    _check_size(path, header.width, header.height, max_pixels)
    if header.bands > _MAX_BANDS or (header.bands == 2 and header.bits > 8):
        pick = "pick three as red, green and blue (e.g. gdal_translate -b 3 -b 2 -b 1)"
        raise BadInputError(f"the image '{path}' has {header.bands} bands: {pick}")
    if header.unmarked and header.bits <= 8:
        mark = "mark them as colour (e.g. gdal_translate -co PHOTOMETRIC=RGB)"
        raise BadInputError(f"the {header.bands} bands of the image '{path}' are marked as grey: {mark}")
    return header


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadInputError(f"the image '{path}' has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadInputError(
            f"the image '{path}' has {width} x {height} = {width * height:,} pixels, beyond the limit of"
            f" {max_pixels:,}: cut it into tiles, or raise the limit with --max-pixels"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if it is missing or broken, and for TIFF, which Pillow rotates on loading."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return turn if isinstance(turn, int) else 1


def _turned(rgb: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Rotate and mirror an image by its EXIF orientation (EXIF 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.is_dir():
            raise BadInputError(f"'{path}' is a folder, not an image")
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise BadInputError(f"no image at '{path}'") from error
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot read the image '{path}': {getattr(error, 'strerror', None) or error}") from error
    with stream:
        yield stream


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's size check, which has one limit for the process; ``_check_size`` has one for each call."""
    with _process_wide_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _without_opencv_log() -> Iterator[None]:
    """Silence OpenCV, which prints to stderr for a broken file; the caller raises one error instead."""
    import cv2

    log = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it
    with _process_wide_lock:
        level = log.getLogLevel()
        log.setLogLevel(0)
        try:
            yield
        finally:
            log.setLogLevel(level)


def _corrupt(path: Path, kind: str, reason: object = "") -> BadInputError:
    detail = " ".join(str(reason).split())
    return BadInputError(f"the {kind} file '{path}' is corrupt or cut short" + (f" ({detail})" if detail else ""))
