"""Reads RemoteSAM-270K: the files of RRSIS-D in another place."""

from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from . import rrsisd
from .folders import image_folder
from .refs import INSTANCES_FILE, REFS_FILE
from .samples import Sample

IMAGE_FOLDER = "JPEGImages"
# The name in the release comes first, then the one in its README.
_REFS_FILES = ("refs(unc)_RemoteSAM.p", REFS_FILE)


def matches(path: Path) -> bool:
    """Return whether a folder is a RemoteSAM-270K data set, even if a part is missing."""
    if (path / _REFS_FILES[0]).is_file():
        return True
    is_rrsisd = any((path / rrsisd.ANNOTATION_FOLDER / file).is_file() for file in (REFS_FILE, INSTANCES_FILE))
    return (path / IMAGE_FOLDER).is_dir() and not is_rrsisd


def read(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every expression of a RemoteSAM-270K folder without opening images.

    Images may have the suffix .png where the annotations say .jpg, and the reverse.

    Raises:
        BadInputError: a file is missing, broken or contains code, or an expression refers to an unknown id.
    """
    refs_path = next((root / name for name in _REFS_FILES if (root / name).is_file()), None)
    if refs_path is None:
        raise BadInputError(f"the annotation file '{root / _REFS_FILES[0]}' is missing, nor is there '{REFS_FILE}'")
    return rrsisd.read_pair(refs_path, root / INSTANCES_FILE, image_folder(root, images, IMAGE_FOLDER))
