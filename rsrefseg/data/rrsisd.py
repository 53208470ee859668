"""Reads the layout of the RRSIS-D data set: a pickle of expressions, a JSON of annotations, a folder of images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.errors import BadInputError
from rsrefseg.data.masks import as_rle
from rsrefseg.data.paths import image_file_name
from rsrefseg.data.safe_pickle import load_plain_pickle
from rsrefseg.data.samples import Dataset, Sample

NAME = "RRSIS-D"
LAYOUT = "rrsisd/refs(unc).p, rrsisd/instances.json, images/rrsisd/JPEGImages/"
ANNOTATION_FOLDER = "rrsisd"
IMAGE_FOLDER = "images/rrsisd/JPEGImages"
REFS_FILE = "refs(unc).p"
INSTANCES_FILE = "instances.json"
MAX_INSTANCES_BYTES = 1 << 30

# Some downloads put both annotation files straight into the root.
_ANNOTATION_FOLDERS = (ANNOTATION_FOLDER, ".")


def matches(path: Path) -> bool:
    """Whether a folder looks like RRSIS-D, even where one of its parts is missing."""
    if (path / IMAGE_FOLDER).is_dir():
        return True
    files = (REFS_FILE, INSTANCES_FILE)
    return any((path / folder / file).is_file() for folder in _ANNOTATION_FOLDERS for file in files)


def read(root: Path, images: Path | None = None) -> Dataset:
    """Read every expression of an RRSIS-D folder; no image is opened.

    Args:
        root: the data set's folder.
        images: folder of the images where it is not ``images/rrsisd/JPEGImages``.

    Raises:
        BadInputError: a file is missing, broken or contains code, or an expression points at nothing.
    """
    refs_path = _find(root, REFS_FILE)
    instances_path = _find(root, INSTANCES_FILE)
    image_folder = images or root / IMAGE_FOLDER
    if not image_folder.is_dir():
        raise BadInputError(
            f"the image folder '{image_folder}' is missing: complete the download, or name it with --images"
        )
    refs = load_plain_pickle(refs_path)
    if not isinstance(refs, list):
        raise BadInputError(f"'{refs_path}' holds no list of expressions")
    instances = _Instances(instances_path)
    samples: list[Sample] = []
    for index, ref in enumerate(refs):
        samples.extend(_samples(ref, index, instances, image_folder, refs_path))
    return Dataset(root=root, name=NAME, samples=tuple(samples))


class _Instances:
    """``instances.json``, indexed by the ids that expressions name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _load_json(path)
        self.images = self._index(content, "images", required=True)
        self.annotations = self._index(content, "annotations", required=True)
        self.categories = self._index(content, "categories", required=False)

    def _index(self, content: dict[str, Any], table: str, required: bool) -> dict[Any, dict[str, Any]]:
        rows = content.get(table, None if required else [])
        if not isinstance(rows, list):
            raise BadInputError(f"'{self.path}' has no list of '{table}'")
        indexed: dict[Any, dict[str, Any]] = {}
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("id"), int | str):
                raise BadInputError(f"'{self.path}': an entry of '{table}' has no id")
            indexed[row["id"]] = row
        return indexed

    def category(self, annotation: dict[str, Any], ref: dict[str, Any]) -> str:
        """Class name; the annotation's key really is ``categories_id`` in RRSIS-D, ``category_id`` elsewhere."""
        for holder, key in ((annotation, "categories_id"), (annotation, "category_id"), (ref, "category_id")):
            identity = holder.get(key)
            if isinstance(identity, int | str):
                return str(self.categories.get(identity, {}).get("name", f"class {identity}"))
        return "unknown"


def _samples(ref: Any, index: int, instances: _Instances, image_folder: Path, refs_path: Path) -> Iterator[Sample]:
    """The samples of one ref: one for each of its sentences."""
    name = f"'{refs_path}', expression {index}"
    if not isinstance(ref, dict):
        raise BadInputError(f"{name} is no dict")
    try:
        ref_id, image_id, annotation_id, split = ref["ref_id"], ref["image_id"], ref["ann_id"], ref["split"]
        phrases = [_phrase(sentence) for sentence in ref["sentences"]]
    except KeyError as error:
        raise BadInputError(f"{name} has no {error}") from error
    except TypeError as error:
        raise BadInputError(f"{name} is malformed ({error})") from error
    if not all(isinstance(identity, int | str) for identity in (ref_id, image_id, annotation_id, split)):
        raise BadInputError(f"{name}: an id or its split is neither number nor text")
    name = f"expression {ref_id} of '{refs_path}'"
    image, annotation = instances.images.get(image_id), instances.annotations.get(annotation_id)
    for what, identity, entry in (("image", image_id, image), ("annotation", annotation_id, annotation)):
        if entry is None:
            raise BadInputError(f"{name} points at {what} {identity!r}, which '{instances.path}' does not hold")
    assert image is not None
    assert annotation is not None
    image_path = image_folder / image_file_name(image.get("file_name", ref.get("file_name")), name)
    rle = as_rle(annotation.get("segmentation"), f"annotation {annotation_id} of '{instances.path}'")
    category = instances.category(annotation, ref)
    for order, phrase in enumerate(phrases):
        sample_id = f"{ref_id}" if len(phrases) == 1 else f"{ref_id}-{order}"
        yield Sample(sample_id, str(split), image_path, phrase, category, rle)


def _phrase(sentence: dict[str, Any]) -> str:
    phrase = sentence["sent"] if "sent" in sentence else sentence["raw"]
    if not isinstance(phrase, str):
        raise TypeError("a sentence is no text")
    return phrase


def _find(root: Path, file: str) -> Path:
    for folder in _ANNOTATION_FOLDERS:
        candidate = root / folder / file
        if candidate.is_file():
            return candidate
    raise BadInputError(f"the annotation file '{root / ANNOTATION_FOLDER / file}' is missing (nor is it in '{root}')")


def _load_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_INSTANCES_BYTES:
            raise BadInputError(f"'{path}' has {size >> 20} MiB; annotations may have {MAX_INSTANCES_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"'{path}' is cut off or not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise BadInputError(f"'{path}' holds no JSON object")
    return content
