"""Finds training images of one data set whose pixels another data set has in its validation or test split."""

import hashlib
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image

from .parallel import in_processes
from .samples import Dataset, size_in_header


def pixel_digest(image: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's shape and pixels: a losslessly recompressed copy is the same image."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def shared_images(datasets: Sequence[Dataset], train_split: str, workers: int) -> dict[Path, str]:
    """Compare the training images of each data set with the images of all other splits of the other data sets.

    Only images whose sizes occur on both sides are decoded, or all if a header does not tell the size. Images that
    cannot be read are equal to none.

    Args:
        datasets: at least two data sets.
        train_split: name of the training split.
        workers: maximum number of processes.

    Returns:
        For each shared training image, where its copy is: data set, split and file.
    """
    training: list[list[Path]] = []
    held_out: list[dict[Path, str]] = []
    for dataset in datasets:
        places = {sample.image_path: sample.split for sample in dataset.samples if sample.split != train_split}
        held_out.append({path: f"the split '{split}' of '{dataset.root}'" for path, split in places.items()})
        training.append(list(dict.fromkeys(s.image_path for s in dataset.samples if s.split == train_split)))
    sizes = {path: size_in_header(path) for paths in (*training, *held_out) for path in paths}
    pairs = list(permutations(range(len(datasets)), 2))
    candidates: dict[Path, None] = {}
    for one, other in pairs:
        sides = [{sizes[path] for path in paths} for paths in (training[one], held_out[other])]
        common = set.union(*sides) if any(None in side for side in sides) else set.intersection(*sides)
        candidates |= dict.fromkeys(path for path in (*training[one], *held_out[other]) if sizes[path] in common)
    digests = dict(zip(candidates, in_processes(_digest, list(candidates), workers), strict=True))
    shared: dict[Path, str] = {}
    for one, other in pairs:
        copies = {digests.get(path): f"'{path.name}' in {place}" for path, place in held_out[other].items()}
        copies.pop(None, None)
        shared |= {path: copies[digest] for path in training[one] if (digest := digests.get(path)) in copies}
    return shared


def _digest(path: Path) -> str | None:
    try:
        return pixel_digest(read_image(path))
    except BadInputError:  # the check of the splits that are read reports it
        return None
