"""Reads Aerial-D: one XML file for each image, with run-length masks and expressions of objects and groups."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name, read_text
from .folders import image_folder
from .masks import annotated_mask, run_length_masks
from .samples import Sample

ANNOTATION_FOLDER, IMAGE_FOLDER = "annotations", "images"
_SPLITS = ("train", "val", "test")  # the release has train and val
# An annotation of a 480 x 480 image has some 100 kB.
_MAX_XML_BYTES = 64 << 20


def matches(path: Path) -> bool:
    """Return whether a folder is an Aerial-D data set, even if a part is missing."""
    return any((path / split / ANNOTATION_FOLDER).is_dir() for split in _SPLITS)


def read(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every expression of an Aerial-D folder without opening images.

    ``images`` is another folder that has ``{train,val}/images``.

    Every expression of an object and of a group of objects becomes a sample: those made by rules, and those that a
    language model has rewritten ("enhanced") or added ("unique"). An object without an expression gives none.

    Raises:
        BadInputError: a folder is missing, or a file is not such XML.
    """
    return tuple(
        sample
        for split in _SPLITS
        if (root / split / ANNOTATION_FOLDER).is_dir()
        for path in sorted((root / split / ANNOTATION_FOLDER).glob("[!.]*.xml"))  # macOS archives add ._*.xml
        for sample in _samples(path, split, image_folder((images or root) / split, None, IMAGE_FOLDER))
    )


def _samples(path: Path, split: str, images: Path) -> Iterator[Sample]:
    root = _parse(path)
    image_path = images / image_file_name(root.findtext("filename"), f"'{path}'")
    for kind, category, elements in (
        ("object", "name", root.findall("object")),
        ("group", "category", root.findall("groups/group")),
    ):
        for element in elements:
            phrases = [expression.text for expression in element.findall("expressions/expression") if expression.text]
            if not phrases:
                continue
            if not (identity := element.findtext("id")):
                raise BadInputError(f"'{path}' has an element '{kind}' without an id: extract it again")
            name = f"{kind} {identity}"
            rles = _run_lengths(element, f"{name} of '{path}'")
            mask = annotated_mask(rles, f"{name} of '{path}'", rles[0].get("size", ()))
            for order, phrase in enumerate(phrases):
                sample_id = f"{split}-{path.stem}-{name.replace(' ', '-')}-{order}"
                yield Sample(sample_id, split, image_path, phrase, element.findtext(category, "unknown"), mask)


def _parse(path: Path) -> Element:
    """Parse an XML file that declares no document type, because entities could expand to any size."""
    text = read_text(path, _MAX_XML_BYTES)
    if "<!DOCTYPE" in text:
        raise BadInputError(f"'{path}' declares a document type, which annotations never have: refused")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadInputError(f"'{path}' is cut off or not XML ({error}): extract it again") from error


def _run_lengths(element: Element, name: str) -> list[dict[str, Any]]:
    """Return the run-length mask of an element, the Python literal of ``{'size': [H, W], 'counts': '...'}``."""
    try:
        value = ast.literal_eval((element.findtext("segmentation") or "").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadInputError(f"{name} has no run-length mask that can be read: extract it again") from error
    return run_length_masks(value, name)
