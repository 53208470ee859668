"""The layout of RefSegRS."""

from pathlib import Path

from . import phrase_lists
from .samples import Dataset

NAME = "RefSegRS"
LAYOUT = "output_phrase_{train,val,test}.txt, images/*.tif, masks/*.tif"
_FILES = phrase_lists.Layout(NAME, ("images",), ("masks",), ".tif")


def matches(path: Path) -> bool:
    """Whether a folder looks like RefSegRS, even where one of its parts is missing; RISBench comes before it."""
    return bool(phrase_lists.phrase_lists(path))


def read(root: Path, images: Path | None = None) -> Dataset:
    """Read every expression of a RefSegRS folder; see ``phrase_lists.read``."""
    return phrase_lists.read(_FILES, root, images)
