"""Reads RefDIOR: one JSON file of expressions for each split, with an image and a mask for each object."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name, parse_object, read_text
from .folders import ListedFolder, find_folder, image_folder
from .phrase_lists import SPLITS
from .samples import Sample

PHRASE_FOLDER, IMAGE_FOLDER, MASK_FOLDER = "phrase_txts", "images", "masks"


def matches(path: Path) -> bool:
    """Return whether a folder is a RefDIOR data set, even if a part is missing."""
    return any(_phrases(path, split).is_file() for split in SPLITS)


def read(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every expression of a RefDIOR folder without opening images or masks.

    ``phrase_txts/{train,val,test}.json`` maps the name of an image and its mask to an object with ``sentences``.

    Raises:
        BadInputError: a folder is missing, or a file is not of that form.
    """
    image_files = ListedFolder(image_folder(root, images, IMAGE_FOLDER), ".jpg")
    mask_files = ListedFolder(find_folder(root, (MASK_FOLDER,), "mask"), ".png")
    return tuple(
        Sample(sample_id, split, image_files.file(name), phrase, category="unknown", mask_source=mask_files.file(name))
        for split in SPLITS
        if _phrases(root, split).is_file()
        for sample_id, name, phrase in _expressions(_phrases(root, split), split)
    )


def _expressions(path: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Yield a sample id, a file name and a phrase for each expression of a file."""
    for name, entry in parse_object(read_text(path), f"'{path}'").items():
        place = f"entry '{name}' of '{path}'"
        sentences: Any = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(sentences, list) or not all(isinstance(phrase, str) for phrase in sentences):
            raise BadInputError(f"{place} has no list of texts 'sentences'")
        file_name = str(image_file_name(name, place))
        for order, phrase in enumerate(sentences):
            yield f"{split}-{name}" + (f"-{order}" if len(sentences) > 1 else ""), file_name, phrase


def _phrases(root: Path, split: str) -> Path:
    return root / PHRASE_FOLDER / f"{split}.json"
