"""Samples, each with one image, one phrase and one mask, as all data set formats provide them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_scene

from .annotation_files import read_bytes
from .masks import BoolMask, BrokenMask, Rle, decode_rle, encode_mask, resize_nearest


@dataclass(frozen=True, slots=True)
class Sample:
    """A referring expression. Members that read the mask raise BadInputError if it is missing or broken.

    Attributes:
        sample_id: id that is unique within the data set.
        split: name of the split, e.g. "train", "val" or "test".
        image_path: path of the image file.
        phrase: the expression as in the data set.
        category: class name of the object.
        mask_source: the mask as checked run lengths, as an image file whose non-black pixels are foreground, or the
            reason why the annotation cannot be read. Samples of one object have equal sources.
        has_target: false if the annotation states that the expression refers to nothing; the mask is empty.
    """

    sample_id: str
    split: str
    image_path: Path
    phrase: str
    category: str
    mask_source: Rle | Path | BrokenMask = field(repr=False, hash=False)
    has_target: bool = True

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the mask; a file is only decoded if its header does not state them."""
        if isinstance(self.mask_source, Path):
            stated = size_in_header(self.mask_source)
            height, width = self.mask().shape if stated is None else stated
        else:
            height, width = self.rle["size"]
        return height, width

    @property
    def rle(self) -> Rle:
        """The mask as run lengths, ``{"size": [H, W], "counts": str}``, compressed and checked."""
        if isinstance(self.mask_source, BrokenMask):
            raise BadInputError(f"sample '{self.sample_id}': {self.mask_source.reason}")
        return encode_mask(self.mask()) if isinstance(self.mask_source, Path) else self.mask_source

    @property
    def mask_fingerprint(self) -> str:
        """A text that identifies the mask: its run lengths, or the SHA-256 of its file."""
        if not isinstance(self.mask_source, Path):
            return str(self.rle["counts"])
        return hashlib.sha256(read_bytes(self.mask_source)).hexdigest()

    def mask(self) -> BoolMask:
        """Return the mask, (H, W) bool."""
        if not isinstance(self.mask_source, Path):
            return decode_rle(self.rle)
        try:
            return np.asarray(read_scene(self.mask_source, stretch="none").image.any(axis=2))
        except BadInputError as error:
            raise BadInputError(f"sample '{self.sample_id}': its mask cannot be read: {error}") from error

    def mask_at(self, size: tuple[int, int], resize: bool) -> tuple[BoolMask, bool]:
        """Return the mask at its image's ``size`` (height, width), and whether it was resized (nearest).

        Raises:
            BadInputError: the size differs and ``resize`` is false.
        """
        found = self.mask_size
        if found != size and not resize:
            raise BadInputError(f"{self.size_difference(found, size)}; --resize-masks resizes such masks")
        return resize_nearest(self.mask(), *size), found != size

    def size_difference(self, mask_size: tuple[int, int], image_size: tuple[int, ...]) -> str:
        """Return the message for a mask of another size than its image."""
        return (
            f"sample '{self.sample_id}': its mask is {mask_size[0]}x{mask_size[1]} but its image "
            f"'{self.image_path.name}' {image_size[0]}x{image_size[1]} (height x width)"
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """All samples of a data set in file order; ``name`` is its format, ``root`` its folder or file."""

    root: Path
    name: str
    samples: tuple[Sample, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of first appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples))

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of a split.

        Raises:
            BadInputError: the split has no samples; the message names the existing splits.
        """
        chosen = tuple(sample for sample in self.samples if sample.split == name)
        if not chosen:
            have = ", ".join(f"'{split}'" for split in self.splits) or "none"
            raise BadInputError(f"the data set '{self.root}' has no samples in the split '{name}'; its splits: {have}")
        return chosen


def group_by_image(samples: Iterable[Sample]) -> tuple[tuple[Sample, ...], ...]:
    """Group samples by image; images are in order of first appearance, samples in the given order."""
    groups: dict[Path, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_path, []).append(sample)
    return tuple(tuple(group) for group in groups.values())


def size_in_header(path: Path) -> tuple[int, int] | None:
    """Return height and width from an image header; None if Pillow cannot read it or EXIF rotates the image."""
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            may_be_turned = image.format == "TIFF" or "exif" in image.info
            turned = may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return None if turned else (image.height, image.width)
    except Exception:  # a broken header raises almost any exception; reading the image reports the fault
        return None
