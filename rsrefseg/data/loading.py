"""From a sample to its pixels: nothing is substituted, and a mask of another size than its image is never passed by."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError

from .masks import BoolMask, resize_nearest
from .samples import Dataset, Sample

SizeMismatch = Literal["refuse", "resize"]


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """One sample's pixels.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) bool.
        resized: whether the mask had another size and was resized; callers count these and say so.
    """

    image: npt.NDArray[np.uint8]
    mask: BoolMask
    resized: bool


def load_pair(sample: Sample, on_size_mismatch: SizeMismatch = "refuse") -> LoadedPair:
    """Read a sample's image and mask.

    Args:
        sample: what to read.
        on_size_mismatch: what to do with a mask of another size than its image: refuse it, or resize it (nearest).

    Raises:
        BadInputError: the image or the mask cannot be read, or their sizes differ and that is refused.
    """
    from rsrefseg.engines.images.images import read_image

    image = read_image(sample.image_path)
    mask, resized = fit_mask(sample, (image.shape[0], image.shape[1]), on_size_mismatch)
    return LoadedPair(image, mask, resized)


def fit_mask(sample: Sample, size: tuple[int, int], on_size_mismatch: SizeMismatch = "refuse") -> tuple[BoolMask, bool]:
    """A sample's mask at its image's size, and whether it had to be resized: for callers that hold the image already.

    Args:
        sample: whose mask.
        size: height and width of its image, in pixels.
        on_size_mismatch: as in ``load_pair``.

    Returns:
        The mask, (H, W) bool, and True if it was resized.

    Raises:
        BadInputError: the mask is broken, or its size differs and that is refused.
    """
    mask_size = sample.mask_size
    if mask_size == size:
        return sample.mask(), False
    if on_size_mismatch == "refuse":
        raise BadInputError(
            f"sample '{sample.sample_id}': its mask is {mask_size[0]}x{mask_size[1]} but its image "
            f"'{sample.image_path.name}' {size[0]}x{size[1]} (height x width); --resize-masks resizes such masks"
        )
    return resize_nearest(sample.mask(), *size), True


def verify_images(dataset: Dataset, splits: Iterable[str]) -> None:
    """Make sure before a long run that every image of some splits is there, and every mask that is a file.

    Raises:
        BadInputError: a split is empty or unknown, or files are missing: how many, and the first of them.
    """
    samples = [sample for split in splits for sample in dataset.split(split)]
    _verify(dict.fromkeys(sample.image_path for sample in samples), "images", dataset)
    _verify(dict.fromkeys(file for sample in samples if (file := sample.mask_source.file)), "masks", dataset)


def verify_phrases(samples: Iterable[Sample]) -> None:
    """Make sure before a long evaluation that every phrase can be asked at all.

    Raises:
        BadInputError: names the first sample whose phrase is blank or far too long.
    """
    from rsrefseg.engines.text import clean_phrase

    for sample in samples:
        try:
            clean_phrase(sample.phrase)
        except BadInputError as error:
            raise BadInputError(f"sample '{sample.sample_id}': {error}") from error


def _verify(paths: Iterable[Path], what: str, dataset: Dataset) -> None:
    paths = tuple(paths)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise BadInputError(
            f"{len(missing)} of {len(paths)} {what} of '{dataset.root}' are missing, the first is '{missing[0]}': "
            "complete the download"
        )
