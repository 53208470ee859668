"""Reads the layout of the RRSIS-D data set: a pickle of expressions, a JSON of annotations, a folder of images."""

from collections.abc import Iterator
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from . import coco
from .coco import Instances, Ref, read_refs
from .mask_sources import RleMask
from .masks import as_rle
from .paths import image_file_name
from .samples import Dataset, Sample

NAME = "RRSIS-D"
LAYOUT = "rrsisd/refs(unc).p, rrsisd/instances.json, images/rrsisd/JPEGImages/"
ANNOTATION_FOLDER = "rrsisd"
IMAGE_FOLDER = "images/rrsisd/JPEGImages"
REFS_FILE = coco.REFS_FILE
INSTANCES_FILE = coco.INSTANCES_FILE

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
    refs = tuple(read_refs(refs_path))
    instances = Instances(instances_path)
    samples = (sample for ref in refs for sample in _samples(ref, instances, image_folder))
    return Dataset(root=root, name=NAME, samples=tuple(samples))


def _samples(ref: Ref, instances: Instances, image_folder: Path) -> Iterator[Sample]:
    """The samples of one ref: one for each of its sentences."""
    if not isinstance(ref.ann_id, int | str):
        raise BadInputError(f"{ref}: its 'ann_id' is neither number nor text")
    image, annotation = instances.image(ref), instances.annotation(ref.ann_id, ref)
    image_path = image_folder / image_file_name(image.get("file_name", ref.file_name), str(ref))
    name, segmentation = instances.annotation_name(ref.ann_id), annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        known_by = "which is known by its folder 'image' or its file names with 'new_'"
        raise BadInputError(f"{name} has polygons, as NWPU-Refer has, {known_by}, and {NAME} has not")
    mask = RleMask(as_rle(segmentation, name))
    category = instances.category(annotation, ref)
    for order, phrase in enumerate(ref.phrases):
        yield Sample(ref.sample_id(order), ref.split, image_path, phrase, category, mask)


def _find(root: Path, file: str) -> Path:
    for folder in _ANNOTATION_FOLDERS:
        candidate = root / folder / file
        if candidate.is_file():
            return candidate
    raise BadInputError(f"the annotation file '{root / ANNOTATION_FOLDER / file}' is missing (nor is it in '{root}')")
