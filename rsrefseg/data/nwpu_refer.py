"""Reads NWPU-Refer: polygons, several objects per expression, and expressions without a target."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from . import rrsisd
from .annotation_files import image_file_name
from .masks import Polygon, Rle, annotated_mask, checked_size, empty_rle
from .refs import INSTANCES_FILE, REFS_FILE, Id, Instances, Ref, read_refs
from .samples import Sample

IMAGE_FOLDER = "image"

# The corrected pair of annotation files has priority; files of different pairs are never combined.
_PREFIXES = ("new_", "")
_IMAGE_FOLDERS = (f"{IMAGE_FOLDER}/image", IMAGE_FOLDER)

Segmentation = Rle | list[Polygon]


def matches(path: Path) -> bool:
    """Return whether a folder is an NWPU-Refer data set, even if a part is missing.

    Without a prefix the annotation files have the same names as RRSIS-D's; then the image folder decides.
    """
    files = (REFS_FILE, INSTANCES_FILE)
    if any((path / f"new_{file}").is_file() for file in files):
        return True
    if not (path / IMAGE_FOLDER).is_dir() or (path / rrsisd.IMAGE_FOLDER).is_dir():
        return False
    return any((path / file).is_file() for file in files)


def read(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every expression of an NWPU-Refer folder without opening images.

    Entries of one image and split with the same sentence form one sample, with the union of their masks and the id and
    class of the first entry. An entry whose ``ann_id`` is None or -1, or whose annotation has an empty segmentation,
    refers to nothing and has an empty mask. Sentences in all languages become samples.

    Raises:
        BadInputError: a file is missing, broken or contains code, or an expression refers to an unknown id.
    """
    refs_path, instances_path = _annotation_files(root)
    refs, instances = tuple(read_refs(refs_path)), Instances(instances_path)
    folder = images or _image_folder(root, instances)
    merged: dict[tuple[str, Id, str], _Merged] = {}
    for ref in refs:
        category, parts = _target(ref, instances)
        for order, phrase in enumerate(ref.phrases):
            key = (ref.split, ref.image_id, phrase)
            if key not in merged:
                merged[key] = _Merged(ref, ref.sample_id(order), instances.image(ref), category)
            merged[key].parts.update(parts)
    return tuple(_sample(group, split, phrase, folder, instances) for (split, _, phrase), group in merged.items())


@dataclass(slots=True)
class _Merged:
    """Entries that form one sample: the first entry, and the segmentations of all entries by annotation id."""

    first: Ref
    sample_id: str
    image: dict[str, Any]
    category: str
    parts: dict[Id, Segmentation] = field(default_factory=dict)


def _sample(group: _Merged, split: str, phrase: str, folder: Path, instances: Instances) -> Sample:
    first, parts = group.first, tuple(group.parts.values())
    path = folder / image_file_name(group.image.get("file_name", first.file_name), str(first))
    size = (group.image.get("height"), group.image.get("width"))
    if parts:
        mask = annotated_mask(parts, f"annotation {', '.join(map(str, group.parts))} of '{instances.path}'", size)
    else:
        mask = empty_rle(*checked_size(size, f"image {first.image_id} of '{instances.path}'"))
    return Sample(group.sample_id, split, path, phrase, group.category, mask, has_target=bool(parts))


def _target(ref: Ref, instances: Instances) -> tuple[str, dict[Id, Segmentation]]:
    """Return the class name and segmentations of an entry's objects; no segmentations if it refers to nothing."""
    category = instances.category({}, ref)
    parts: dict[Id, Segmentation] = {}
    for identity in ref.ann_id if isinstance(ref.ann_id, list) else [ref.ann_id]:
        if identity is None or (identity == -1 and -1 not in instances.annotations):
            continue
        annotation = instances.annotation(identity, ref)
        if not parts:
            category = instances.category(annotation, ref)
        if segmentation := _segmentation(annotation, instances.annotation_name(identity)):
            parts[identity] = segmentation
    return category, parts


def _segmentation(annotation: dict[str, Any], name: str) -> Segmentation | None:
    """Return the polygons or run-length mask of an annotation; None if the segmentation is empty."""
    value = annotation.get("segmentation", "nothing")
    if isinstance(value, list):
        value = [part for part in value if part != []]
        if len(value) == 1 and isinstance(value[0], dict):
            value = value[0]
    if value is None or value == []:
        box = annotation.get("bbox")
        sides = box[2:] if isinstance(box, list) and len(box) == 4 else [0]
        if all(isinstance(side, int | float) and side > 0 for side in sides):
            raise BadInputError(f"{name} has a box but no outline: get the annotations again")
        return None
    if not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(part, list) for part in value)):
        raise BadInputError(f"{name}: its 'segmentation' is neither polygons nor a run-length mask")
    return value


def _annotation_files(root: Path) -> tuple[Path, Path]:
    """Return the paths of the pickle and the JSON file of one pair."""
    for prefix in _PREFIXES:
        pair = (root / f"{prefix}{REFS_FILE}", root / f"{prefix}{INSTANCES_FILE}")
        missing = [path for path in pair if not path.is_file()]
        if len(missing) == 1:
            (there,) = set(pair) - set(missing)
            raise BadInputError(f"the annotation file '{missing[0]}' is missing, which belongs to '{there.name}'")
        if not missing:
            return pair
    raise BadInputError(f"the annotation files '{root / REFS_FILE}' and '{INSTANCES_FILE}' are missing")


def _image_folder(root: Path, instances: Instances) -> Path:
    """Return the folder that has any of the first images; if none does, the most likely one."""
    folders = [root / folder for folder in _IMAGE_FOLDERS if (root / folder).is_dir()]
    if not folders:
        folder = root / IMAGE_FOLDER
        raise BadInputError(f"the image folder '{folder}' is missing: complete the download, or name it with --images")
    names = [entry.get("file_name") for entry in list(instances.images.values())[:100]]
    for folder in folders:
        if any(isinstance(name, str) and "\0" not in name and (folder / name).is_file() for name in names):
            return folder
    return folders[0]
