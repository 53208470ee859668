"""Annotation files, read without trust: sizes are bounded, and image names stay inside their folder."""

import json
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from rsrefseg.engines.errors import BadInputError

# Larger than any published annotation file; a real instances.json has 100 MB.
MAX_ANNOTATION_BYTES = 1 << 30


def read_bytes(path: Path, limit: int = MAX_ANNOTATION_BYTES) -> bytes:
    """The content of a file.

    Raises:
        BadInputError: it cannot be read, or is larger than ``limit``.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise BadInputError(
                f"'{path}' has {size >> 20} MiB, more than the {limit >> 20} MiB that such a file may have"
            )
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error


def read_text(path: Path, limit: int = MAX_ANNOTATION_BYTES) -> str:
    """The content of a UTF-8 file, with or without a byte-order mark.

    Raises:
        BadInputError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"'{path}' is not UTF-8 text ({error.reason})") from error


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, name for error lines, and text of every line that is not blank.

    Raises:
        BadInputError: as ``read_text``.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, f"line {number} of '{path}'", line


def parse_object(text: str, name: str) -> dict[str, Any]:
    """A JSON object; ``name`` says where it stands.

    Raises:
        BadInputError: it is cut off, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{name} is cut off or not JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{name} is not a JSON object")
    return value


def image_file_name(value: Any, name: str) -> Path:
    """An image's file name relative to the image folder; backslashes separate folders too.

    Raises:
        BadInputError: it is not a file name, or would lead out of the image folder.
    """
    if not isinstance(value, str) or "\0" in value or not PureWindowsPath(value).name:
        raise BadInputError(f"{name}: its image {value!r} has no file name")
    file_name = PureWindowsPath(value)
    if file_name.anchor or ".." in file_name.parts:
        raise BadInputError(f"{name}: its image '{value}' lies outside the image folder: refused")
    return Path(file_name.as_posix())
