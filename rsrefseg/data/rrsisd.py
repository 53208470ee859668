"""Reads RRSIS-D: a pickle of expressions, a JSON file of annotations, and a folder of images."""

from collections.abc import Iterator
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name
from .folders import ListedFolder, image_folder
from .masks import annotated_mask, run_length_masks
from .refs import INSTANCES_FILE, REFS_FILE, Instances, Ref, read_refs
from .samples import Sample

ANNOTATION_FOLDER = "rrsisd"
IMAGE_FOLDER = "images/rrsisd/JPEGImages"

# Some downloads have both annotation files in the root.
_ANNOTATION_FOLDERS = (ANNOTATION_FOLDER, ".")


def matches(path: Path) -> bool:
    """Return whether a folder is an RRSIS-D data set, even if a part is missing."""
    files = (REFS_FILE, INSTANCES_FILE)
    annotated = any((path / folder / file).is_file() for folder in _ANNOTATION_FOLDERS for file in files)
    return annotated or (path / IMAGE_FOLDER).is_dir()


def read(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every expression of an RRSIS-D folder without opening images.

    Raises:
        BadInputError: a file is missing, broken or contains code, or an expression refers to an unknown id.
    """
    refs_path, instances_path = _find(root, REFS_FILE), _find(root, INSTANCES_FILE)
    return read_pair(refs_path, instances_path, image_folder(root, images, IMAGE_FOLDER))


def read_pair(refs_path: Path, instances_path: Path, images: Path) -> tuple[Sample, ...]:
    """Read a pickle of expressions whose masks are run lengths in a JSON file.

    Raises:
        BadInputError: see ``read``.
    """
    refs, instances = tuple(read_refs(refs_path)), Instances(instances_path)
    files = ListedFolder(images, ".jpg")
    return tuple(sample for ref in refs for sample in _samples(ref, instances, files))


def _samples(ref: Ref, instances: Instances, images: ListedFolder) -> Iterator[Sample]:
    """Yield a sample for each sentence of an entry."""
    image, annotation = instances.image(ref), instances.annotation(ref.ann_id, ref)
    image_path = images.file(str(image_file_name(image.get("file_name", ref.file_name), str(ref))))
    name = instances.annotation_name(ref.ann_id)
    hint = "; polygons, as in NWPU-Refer, are read from its folder 'image' or its file names with 'new_'"
    rles = run_length_masks(annotation.get("segmentation"), name, hint)
    mask = annotated_mask(rles, name, rles[0].get("size", ()))
    category = instances.category(annotation, ref)
    for order, phrase in enumerate(ref.phrases):
        yield Sample(ref.sample_id(order), ref.split, image_path, phrase, category, mask, not ref.no_target)


def _find(root: Path, file: str) -> Path:
    for folder in _ANNOTATION_FOLDERS:
        if (root / folder / file).is_file():
            return root / folder / file
    raise BadInputError(f"the annotation file '{root / ANNOTATION_FOLDER / file}' is missing (nor is it in '{root}')")
