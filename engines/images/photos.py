"""Decodes photos (PNG, JPEG, WebP, BMP, GIF, PPM) with Pillow, and names the problem of each it cannot read."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import BadInputError
from .scene import Scene

_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"GIF8": "GIF",
    **{b"P%d" % number: "PPM" for number in range(1, 7)},
}
_process_wide_lock = threading.Lock()


def photo_kind(path: Path) -> str | None:
    """Return the photo format that the first bytes of a file name; ``None`` for other files.

    Raises:
        BadInputError: the file is missing, a folder, empty or unreadable.
    """
    try:
        if path.is_dir():
            raise BadInputError(f"'{path}' is a folder, not an image")
        with path.open("rb") as stream:
            prefix = stream.read(8)
    except FileNotFoundError as error:
        raise BadInputError(f"no image at '{path}'") from error
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot read the image '{path}': {getattr(error, 'strerror', None) or error}") from error
    if not prefix:
        raise BadInputError(f"the image '{path}' is empty (0 bytes)")
    return next((kind for signature, kind in _SIGNATURES.items() if prefix.startswith(signature)), None)


def read_photo(path: Path, kind: str, max_pixels: int) -> Scene | None:
    """Decode a photo of a format that ``photo_kind`` named; ``None`` if it holds more than 8 bits a value.

    Raises:
        BadInputError: the file is not a readable image, or larger than ``max_pixels``.
    """
    try:
        with path.open("rb") as stream:
            return _decode(path, kind, stream, max_pixels)
    except BadInputError:
        raise
    except UnidentifiedImageError as error:
        raise _corrupt(path, kind) from error
    except MemoryError as error:
        raise BadInputError(f"not enough memory to decode the image '{path}'") from error
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise _corrupt(path, kind, error) from error


def _decode(path: Path, kind: str, stream: IO[bytes], max_pixels: int) -> Scene | None:
    with _without_pillow_limit():
        image = Image.open(stream, formats=[kind])
    check_size(str(path), image.width, image.height, max_pixels)
    # Pillow keeps the high byte of 16-bit colours only, which makes 12-bit images almost black.
    if image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile):
        return None
    huge = Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS
    with _without_pillow_limit() if huge else contextlib.nullcontext():
        image.load()
    turn = _orientation(image)
    if not image.has_transparency_data:
        return Scene(_turned(np.array(image if image.mode == "RGB" else image.convert("RGB")), turn))
    bands = np.array(image.convert("RGBA"))
    opacity = bands[..., 3:].astype(np.uint16)
    rgb = ((bands[..., :3] * opacity + 127) // 255).astype(np.uint8)
    valid = bands[..., 3] > 0
    return Scene(_turned(rgb, turn), None if valid.all() else _turned(valid, turn))


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Check the size of an image before it is decoded.

    Raises:
        BadInputError: it has no pixels or more than ``max_pixels``.
    """
    if width < 1 or height < 1:
        raise BadInputError(f"the image '{name}' has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadInputError(
            f"the image '{name}' has {width} x {height} = {width * height:,} pixels, beyond the limit of"
            f" {max_pixels:,}: cut it into tiles, or raise the limit with --max-pixels"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if it is missing or broken."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return turn if isinstance(turn, int) else 1


def _turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Rotate and mirror an image by its EXIF orientation (EXIF 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's size check, which has one limit for the process; ``check_size`` has one for each call."""
    with _process_wide_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _corrupt(path: Path, kind: str, reason: object = "") -> BadInputError:
    detail = " ".join(str(reason).split())
    return BadInputError(f"the {kind} file '{path}' is corrupt or cut short" + (f" ({detail})" if detail else ""))
