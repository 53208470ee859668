"""The layout of RISBench."""

from pathlib import Path

from . import phrase_lists
from .samples import Dataset

NAME = "RISBench"
LAYOUT = "output_phrase_{train,val,test}.txt, img_rgb/*.png (or images/), mask/*.png (or masks/)"
_FILES = phrase_lists.Layout(NAME, ("img_rgb", "images"), ("mask", "masks"), ".png")
_OWN_FOLDERS = ("img_rgb", "mask")
_SHARED_FOLDERS = ("images", "masks")


def matches(path: Path) -> bool:
    """Whether a folder looks like RISBench; where its folders are named as RefSegRS's are, their files tell."""
    if not phrase_lists.has_lists(path):
        return False
    if any((path / folder).is_dir() for folder in _OWN_FOLDERS):
        return True
    shared = next((path / folder for folder in _SHARED_FOLDERS if (path / folder).is_dir()), None)
    return shared is not None and any(shared.glob("*.png"))


def read(root: Path, images: Path | None = None) -> Dataset:
    """Read every expression of a RISBench folder; see ``read``."""
    return phrase_lists.read(_FILES, root, images)
