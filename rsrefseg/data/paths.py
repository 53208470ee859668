"""File names as annotations give them, kept inside their folder."""

from pathlib import Path, PurePosixPath
from typing import Any

from rsrefseg.engines.errors import BadInputError


def image_file_name(value: Any, name: str) -> Path:
    """An image's file name, relative to the image folder.

    Args:
        value: what the annotation says.
        name: whose annotation, for the error line.

    Raises:
        BadInputError: it is no file name, or would lead out of the image folder.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise BadInputError(f"{name}: its image has no file name")
    file_name = PurePosixPath(value)
    if not file_name.name:
        raise BadInputError(f"{name}: its image '{value}' is no file name")
    if file_name.is_absolute() or ".." in file_name.parts:
        raise BadInputError(f"{name}: its image '{value}' lies outside the image folder: refused")
    return Path(file_name)
