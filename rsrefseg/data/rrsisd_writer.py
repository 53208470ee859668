"""Writes data sets in the RRSIS-D layout, including its quirks, so that rendered scenes test its reader."""

import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_directory

from . import rrsisd
from .masks import BoolMask, encode_mask, rle_box
from .refs import INSTANCES_FILE, REFS_FILE

JPEG_QUALITY = 95
# Pickle protocol of the oldest readers of this format.
_PICKLE_PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class Referral:
    """A phrase, the class of the object it refers to, and the object's mask, (H, W) bool.

    ``has_target`` is false if the phrase refers to nothing; the class is the one it names, and the mask is empty.
    """

    phrase: str
    category: str
    mask: BoolMask
    has_target: bool = True


# A split, an image (H, W, 3) uint8 RGB, and its phrases with their objects.
WrittenScene = tuple[str, npt.NDArray[np.uint8], Sequence[Referral]]


def write_rrsisd(root: Path, scenes: Iterable[WrittenScene], overwrite: bool = False) -> None:
    """Write a data set in the RRSIS-D layout, atomically. Equal scenes produce equal bytes in every file.

    With ``overwrite``, an existing folder is replaced if it has this layout and nothing else.

    Raises:
        BadInputError: the folder is not empty and may not be replaced.
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not (overwrite and _is_replaceable(root)):
        raise BadInputError(f"'{root}' is not empty: name another folder or remove it first")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    classes: list[str] = []
    with atomic_directory(root) as folder:
        (folder / rrsisd.IMAGE_FOLDER).mkdir(parents=True)
        for image_id, (split, pixels, referrals) in enumerate(scenes, start=1):
            file_name = f"{image_id:05d}.jpg"
            height, width = pixels.shape[:2]
            image = Image.fromarray(pixels)
            image.save(folder / rrsisd.IMAGE_FOLDER / file_name, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
            images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
            for referral in referrals:
                if referral.mask.shape != (height, width):
                    raise ValueError(f"a mask must be {(height, width)} like its image, not {referral.mask.shape}")
                classes.append(referral.category)
                identity, phrase, rle = len(classes), referral.phrase, encode_mask(referral.mask)
                annotation = {
                    "id": identity,
                    "image_id": image_id,
                    "bbox": list(rle_box(rle)),
                    "area": int(np.count_nonzero(referral.mask)),
                    "segmentation": [rle],
                    "iscrowd": 0,
                }
                ref = {
                    "image_id": image_id,
                    "split": split,
                    "sentences": [{"tokens": phrase.split(), "raw": phrase, "sent_id": identity, "sent": phrase}],
                    "file_name": file_name,
                    "ann_id": identity,
                    "sent_ids": [identity],
                    "ref_id": identity,
                }
                if not referral.has_target:
                    ref["no_target"] = True
                annotations.append(annotation)
                refs.append(ref)
        # Classes are numbered by name after all of them are known.
        numbers = {name: number for number, name in enumerate(sorted(set(classes)), start=1)}
        for name, annotation, ref in zip(classes, annotations, refs, strict=True):
            annotation["categories_id"] = ref["category_id"] = numbers[name]
        categories = [{"id": number, "name": name, "supercategory": "object"} for name, number in numbers.items()]
        instances = {"images": images, "annotations": annotations, "categories": categories}
        annotation_folder = folder / rrsisd.ANNOTATION_FOLDER
        annotation_folder.mkdir()
        text = json.dumps(instances, ensure_ascii=False)
        (annotation_folder / INSTANCES_FILE).write_text(text + "\n", encoding="utf-8")
        # A pass through JSON makes the pickle's bytes independent of which equal strings share one object.
        plain = json.loads(json.dumps(refs))
        (annotation_folder / REFS_FILE).write_bytes(pickle.dumps(plain, protocol=_PICKLE_PROTOCOL))


def _is_replaceable(root: Path) -> bool:
    """Return whether a folder has what ``write_rrsisd`` writes and nothing else beside it."""
    tops = {Path(folder).parts[0] for folder in (rrsisd.ANNOTATION_FOLDER, rrsisd.IMAGE_FOLDER)}
    return root.is_dir() and rrsisd.matches(root) and {entry.name for entry in root.iterdir()} <= tops
