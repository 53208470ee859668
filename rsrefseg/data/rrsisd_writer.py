"""Writes the layout of the RRSIS-D data set, quirks included, so that made scenes test the reader of real files."""

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
# Protocol 2 is what the oldest readers of this format take.
_PICKLE_PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class Referral:
    """A phrase, the class of the one object it means, and that object's pixels, (H, W) bool."""

    phrase: str
    category: str
    mask: BoolMask


# A split, an image (H, W, 3) uint8 RGB, and what is said of it.
WrittenScene = tuple[str, npt.NDArray[np.uint8], Sequence[Referral]]


def write_rrsisd(root: Path, scenes: Iterable[WrittenScene], overwrite: bool = False) -> None:
    """Write a data set in the RRSIS-D layout, whole or not at all. The same scenes give the same bytes in every file.

    Args:
        root: folder to make. An existing one that holds anything is refused, unless ``overwrite``.
        scenes: taken one by one.
        overwrite: replace an RRSIS-D folder that is already there; any other folder is refused all the same.

    Raises:
        BadInputError: the folder is refused.
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not (overwrite and rrsisd.matches(root)):
        raise BadInputError(f"'{root}' already holds something: name another folder or remove it first")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
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
                annotations.append(_annotation(len(annotations) + 1, image_id, referral))
                refs.append(_ref(len(refs) + 1, image_id, split, file_name, referral))
        # The classes are numbered by name, once all are known.
        names = sorted({annotation["category"] for annotation in annotations})
        numbers = {name: number for number, name in enumerate(names, start=1)}
        for annotation, ref in zip(annotations, refs, strict=True):
            annotation["categories_id"] = numbers[annotation.pop("category")]
            ref["category_id"] = numbers[ref.pop("category")]
        categories = [{"id": number, "name": name, "supercategory": "object"} for name, number in numbers.items()]
        instances = json.dumps(
            {"images": images, "annotations": annotations, "categories": categories}, ensure_ascii=False
        )
        annotation_folder = folder / rrsisd.ANNOTATION_FOLDER
        annotation_folder.mkdir()
        (annotation_folder / INSTANCES_FILE).write_text(instances + "\n", encoding="utf-8")
        # Pickle's bytes depend on which equal strings are one object; a pass through JSON makes that the same always.
        plain = json.loads(json.dumps(refs))
        (annotation_folder / REFS_FILE).write_bytes(pickle.dumps(plain, protocol=_PICKLE_PROTOCOL))


def _annotation(identity: int, image_id: int, referral: Referral) -> dict[str, Any]:
    rle = encode_mask(referral.mask)
    return {
        "id": identity,
        "image_id": image_id,
        "category": referral.category,
        "bbox": list(rle_box(rle)),
        "area": int(np.count_nonzero(referral.mask)),
        "segmentation": [rle],
        "iscrowd": 0,
    }


def _ref(identity: int, image_id: int, split: str, file_name: str, referral: Referral) -> dict[str, Any]:
    phrase = referral.phrase
    return {
        "image_id": image_id,
        "split": split,
        "sentences": [{"tokens": phrase.split(), "raw": phrase, "sent_id": identity, "sent": phrase}],
        "file_name": file_name,
        "category": referral.category,
        "ann_id": identity,
        "sent_ids": [identity],
        "ref_id": identity,
    }
