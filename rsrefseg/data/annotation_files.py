"""Reads untrusted annotation files: sizes are bounded, and image names cannot leave their folder."""

import json
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from rsrefseg.engines.errors import BadInputError

# Larger than any published annotation file; a typical instances.json has 100 MB.
MAX_ANNOTATION_BYTES = 1 << 30


def read_bytes(path: Path, limit: int = MAX_ANNOTATION_BYTES) -> bytes:
    """Read a file.

    Raises:
        BadInputError: the file cannot be read or is larger than ``limit`` bytes.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise BadInputError(
                f"'{path}' has {size >> 20} MiB, more than the limit of {limit >> 20} MiB for such a file"
            )
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error


def read_text(path: Path, limit: int = MAX_ANNOTATION_BYTES) -> str:
    """Read a UTF-8 file with or without a byte-order mark.

    Raises:
        BadInputError: the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"'{path}' is not UTF-8 text ({error.reason})") from error


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number, the name for error messages, and the text of every line that is not blank.

    Raises:
        BadInputError: see ``read_text``.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, f"line {number} of '{path}'", line


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; ``name`` is its place, for messages.

    Raises:
        BadInputError: the text is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{name} is cut off or not JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{name} is not a JSON object")
    return value


def image_file_name(value: Any, name: str) -> Path:
    """Return an image's path relative to the image folder; backslashes also separate folders.

    Raises:
        BadInputError: the value is not a file name, or its path leaves the image folder.
    """
    if not isinstance(value, str) or "\0" in value or not PureWindowsPath(value).name:
        raise BadInputError(f"{name}: its image {value!r} has no file name")
    file_name = PureWindowsPath(value)
    if file_name.anchor or ".." in file_name.parts:
        raise BadInputError(f"{name}: its image '{value}' is outside the image folder: refused")
    return Path(file_name.as_posix())
