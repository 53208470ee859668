"""The layout of RISBench."""

from pathlib import Path

from . import phrase_lists
from .samples import Dataset

NAME = "RISBench"
LAYOUT = "output_phrase_{train,val,test}.txt, img_rgb/*.png (or images/), mask/*.png (or masks/)"
_FILES = phrase_lists.Layout(NAME, ("img_rgb", "images"), ("mask", "masks"), ".png")


def matches(path: Path) -> bool:
    """Whether a folder looks like RISBench; where its folders are named as RefSegRS's are, their files decide."""
    if not phrase_lists.phrase_lists(path):
        return False
    if any((path / folder).is_dir() for folder in ("img_rgb", "mask")):
        return True
    shared = next((path / folder for folder in ("images", "masks") if (path / folder).is_dir()), None)
    return shared is not None and any(shared.glob("*.png"))


def read(root: Path, images: Path | None = None) -> Dataset:
    """Read every expression of a RISBench folder; see ``phrase_lists.read``."""
    return phrase_lists.read(_FILES, root, images)
