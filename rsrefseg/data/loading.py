"""A sample's mask at the size of its image."""

from typing import Literal

from rsrefseg.engines.errors import BadInputError

from .masks import BoolMask, resize_nearest
from .samples import Sample

SizeMismatch = Literal["refuse", "resize"]


def fit_mask(sample: Sample, size: tuple[int, int], on_size_mismatch: SizeMismatch = "refuse") -> tuple[BoolMask, bool]:
    """A sample's mask, (H, W) bool, at its image's ``size`` (height, width), and whether it was resized (nearest).

    Raises:
        BadInputError: the mask is broken, or its size differs and that is refused.
    """
    found = sample.mask_size
    if found == size:
        return sample.mask(), False
    if on_size_mismatch == "refuse":
        raise BadInputError(f"{size_difference(sample, found, size)}; --resize-masks resizes such masks")
    return resize_nearest(sample.mask(), *size), True


def size_difference(sample: Sample, mask_size: tuple[int, int], image_size: tuple[int, ...]) -> str:
    """How an error line states that a mask does not have its image's size."""
    return (
        f"sample '{sample.sample_id}': its mask is {mask_size[0]}x{mask_size[1]} but its image "
        f"'{sample.image_path.name}' {image_size[0]}x{image_size[1]} (height x width)"
    )
