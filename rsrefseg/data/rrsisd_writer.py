"""Writes the layout of the RRSIS-D data set, quirks included, so that made scenes test the reader real files meet."""

import contextlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_directory

from . import rrsisd
from .masks import BoolMask, encode_mask, rle_box
from .refs import INSTANCES_FILE, REFS_FILE

JPEG_QUALITY = 95
# Protocol 2 is what the oldest readers of this format take.
_PICKLE_PROTOCOL = 2


class Referral(Protocol):
    """What the writer asks of one expression and its mask."""

    @property
    def phrase(self) -> str:
        """The expression."""

    @property
    def category(self) -> str:
        """Class name of the object it refers to."""

    @property
    def mask(self) -> BoolMask:
        """Where that object is, (H, W) bool."""


class RRSISDWriter:
    """Writes a data set in the RRSIS-D layout; the folder appears whole when the ``with`` block ends, or not at all.

    The same scenes give the same bytes in every file.

    Args:
        root: folder to make. An existing one that holds anything is refused, unless ``overwrite``.
        overwrite: replace an RRSIS-D folder that is already there; any other folder is refused all the same.
    """

    def __init__(self, root: Path, overwrite: bool = False) -> None:
        self._root = Path(root)
        self._overwrite = overwrite
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._refs: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        occupied = self._root.exists() and (not self._root.is_dir() or any(self._root.iterdir()))
        if occupied and not (self._overwrite and rrsisd.matches(self._root)):
            raise BadInputError(f"'{self._root}' already holds something: name another folder or remove it first")
        self._folder = self._stack.enter_context(atomic_directory(self._root))
        (self._folder / rrsisd.IMAGE_FOLDER).mkdir(parents=True)
        (self._folder / rrsisd.ANNOTATION_FOLDER).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            # Inside the stack's reach: a disk that is full now must remove the folder too.
            with self._stack:
                self._write_annotations()
        else:
            self._stack.__exit__(kind, error, traceback)

    def add(self, split: str, image: npt.NDArray[np.uint8], referrals: Sequence[Referral]) -> None:
        """Write one image with its expressions.

        Args:
            split: "train", "val" or "test".
            image: (H, W, 3) uint8, RGB.
            referrals: its expressions, each with ``phrase``, ``category`` and ``mask`` (H, W) bool.

        Raises:
            ValueError: an array of another shape or type, or no ``with`` block around the call.
        """
        if self._folder is None:
            raise ValueError("RRSISDWriter.add outside its with block")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        image_id = len(self._images) + 1
        file_name = f"{image_id:05d}.jpg"
        height, width = image.shape[:2]
        for referral in referrals:
            mask = referral.mask
            if mask.shape != (height, width) or mask.dtype != np.bool_:
                raise ValueError(f"a mask must be {(height, width)} bool like its image, not {mask.shape} {mask.dtype}")
        self._save_jpeg(self._folder / rrsisd.IMAGE_FOLDER / file_name, image)
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for referral in referrals:
            self._add_referral(split, image_id, file_name, referral)

    def _add_referral(self, split: str, image_id: int, file_name: str, referral: Referral) -> None:
        identity = len(self._refs) + 1
        rle = encode_mask(referral.mask)
        self._annotations.append(
            {
                "id": identity,
                "image_id": image_id,
                "category": referral.category,
                "bbox": list(rle_box(rle)),
                "area": int(np.count_nonzero(referral.mask)),
                "segmentation": [rle],
                "iscrowd": 0,
            }
        )
        phrase = referral.phrase
        sentence = {"tokens": phrase.split(), "raw": phrase, "sent_id": identity, "sent": phrase}
        self._refs.append(
            {
                "image_id": image_id,
                "split": split,
                "sentences": [sentence],
                "file_name": file_name,
                "category": referral.category,
                "ann_id": identity,
                "sent_ids": [identity],
                "ref_id": identity,
            }
        )

    def _write_annotations(self) -> None:
        """Number the classes by name, now that all are known, and write both annotation files."""
        assert self._folder is not None
        names = sorted({annotation["category"] for annotation in self._annotations})
        numbers = {name: number for number, name in enumerate(names, start=1)}
        for annotation in self._annotations:
            annotation["categories_id"] = numbers[annotation.pop("category")]
        for ref in self._refs:
            ref["category_id"] = numbers[ref.pop("category")]
        instances = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": number, "name": name, "supercategory": "object"} for name, number in numbers.items()],
        }
        folder = self._folder / rrsisd.ANNOTATION_FOLDER
        (folder / INSTANCES_FILE).write_text(json.dumps(instances, ensure_ascii=False) + "\n", encoding="utf-8")
        # Pickle's bytes tell which equal strings are one object; a pass through JSON makes that the same every time.
        refs = json.loads(json.dumps(self._refs))
        (folder / REFS_FILE).write_bytes(pickle.dumps(refs, protocol=_PICKLE_PROTOCOL))

    @staticmethod
    def _save_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> None:
        from PIL import Image

        Image.fromarray(image).save(path, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
