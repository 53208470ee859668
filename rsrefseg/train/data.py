"""Reads and checks the samples of a training before the first step."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer

from ..data.formats import open_dataset
from ..data.samples import Dataset, Sample
from ..data.shared_images import shared_images
from ..data.verify import verify_samples
from .processes import agreed, this_process
from .settings import DataSettings


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Training samples grouped by image, validation samples, and the tokenizer.

    ``shares`` has, for each data set in order, its number of images and the share of them that an epoch draws.
    """

    groups: tuple[tuple[Sample, ...], ...]
    validation: tuple[Sample, ...]
    tokenizer: Tokenizer
    resize_masks: bool = False
    shares: tuple[tuple[int, float], ...] = ()


def read_samples(
    settings: DataSettings, say: Callable[[str], object] = lambda line: None
) -> tuple[tuple[tuple[Sample, ...], ...], tuple[Sample, ...]]:
    """Read the data sets; ``say`` receives notes.

    Returns:
        The training samples of each data set, and the validation samples of all of them, after a check of their images
        and masks.

    Raises:
        BadInputError: a data set cannot be used, or a training image of one has the pixels of an image of another
            split of another one and ``drop_shared`` is not set.
    """
    datasets = [open_dataset(path, settings.images) for path in settings.path]
    validation = settings.validation_split
    # One of several data sets may have no validation split.
    validated = [dataset for dataset in datasets if validation in dataset.splits] or datasets[:1]
    samples: list[tuple[Sample, ...]] = []
    held_out: list[Sample] = []
    for dataset in datasets:
        splits = [settings.train_split, *([validation] if validation and dataset in validated else [])]
        train, *rest = verify_samples(dataset, splits, settings.resize_masks)
        samples.append(train)
        held_out += chain(*rest)
    if len(datasets) > 1:
        samples = _without_shared(samples, datasets, settings, say)
    return tuple(samples), tuple(held_out)


def _without_shared(
    samples: Sequence[tuple[Sample, ...]],
    datasets: Sequence[Dataset],
    settings: DataSettings,
    say: Callable[[str], object],
) -> list[tuple[Sample, ...]]:
    """Return the training samples whose images are in no other split of another data set.

    Raises:
        BadInputError: there are others and ``drop_shared`` is not set, or a data set has no samples left.
    """
    shared: dict[Path, str] = {}
    if this_process().is_main_process:
        shared = shared_images(datasets, settings.train_split, os.cpu_count() or 1)
    shared = agreed(shared)
    if shared and not settings.drop_shared:
        path, place = next(iter(shared.items()))
        raise BadInputError(
            f"{len(shared)} training images have the pixels of images that are held out, the first is '{path}' = "
            f"{place}: --drop-shared leaves them out of the training"
        )
    kept = [tuple(sample for sample in part if sample.image_path not in shared) for part in samples]
    if empty := [dataset for dataset, part in zip(datasets, kept, strict=True) if not part]:
        raise BadInputError(f"every training image of '{empty[0].root}' is held out by another data set: leave it out")
    if shared:
        say(f"{len(shared)} training images are left out, because another data set has them in another split")
    return kept


def check_phrases(samples: Iterable[Sample], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Check that the tokenizer can encode every phrase.

    Returns:
        A line for each phrase that is truncated or has unknown words.

    Raises:
        BadInputError: a phrase is empty, too long or without a known word; the message names its sample.
    """
    warnings: list[str] = []
    for phrase, sample_id in {sample.phrase: sample.sample_id for sample in samples}.items():
        try:
            warnings += tokenizer.encode([phrase]).warnings
        except BadInputError as error:
            raise BadInputError(f"sample '{sample_id}': {error}") from error
    return tuple(warnings)


def samples_digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of ids, image names, phrases and masks of samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        facts = [sample.sample_id, sample.image_path.name, sample.phrase, sample.mask_fingerprint]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
