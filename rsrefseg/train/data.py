"""The samples of a training, checked before the first step."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.text import Tokenizer

from ..data.headers import size_in_header
from ..data.loading import SizeMismatch, fit_mask, verify_images
from ..data.samples import Sample, group_by_image, open_dataset
from .settings import DataSettings


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a training reads: training samples by image, validation samples, and the tokenizer."""

    groups: tuple[tuple[Sample, ...], ...]
    validation: tuple[Sample, ...]
    tokenizer: Tokenizer
    on_size_mismatch: SizeMismatch = "refuse"


def read_samples(settings: DataSettings) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation samples whose images exist and whose masks fit, or may be resized.

    Raises:
        BadInputError: the data set cannot be used as it is.
    """
    if settings.path is None:
        raise MissingPartError("training needs a data set (--data)")
    dataset = open_dataset(settings.path, settings.images)
    splits = [settings.train_split, *([settings.validation_split] if settings.validation_split else [])]
    verify_images(dataset, splits)
    samples = [dataset.split(split) for split in splits]
    if not settings.resize_masks:
        for split in samples:
            _refuse_size_differences(split)
    return samples[0], samples[1] if len(samples) > 1 else ()


def _refuse_size_differences(samples: Iterable[Sample]) -> None:
    """Compare mask sizes with the headers of the images, which takes seconds for a whole data set."""
    for group in group_by_image(samples):
        size = size_in_header(group[0].image_path)
        if different := [sample for sample in group if sample.mask_size != size]:
            image = read_image(group[0].image_path)  # rotated as its EXIF tag says, which the header's size is not
            for sample in different:
                fit_mask(sample, (image.shape[0], image.shape[1]))


def check_phrases(samples: Iterable[Sample], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Check that the tokenizer can read every phrase.

    Returns:
        One line for each phrase that is cut or has unknown words.

    Raises:
        BadInputError: names the first sample with an empty or overlong phrase, or one without a known word.
    """
    warnings: list[str] = []
    for phrase, sample_id in {sample.phrase: sample.sample_id for sample in samples}.items():
        try:
            warnings += tokenizer.encode([phrase]).warnings
        except BadInputError as error:
            raise BadInputError(f"sample '{sample_id}': {error}") from error
    return tuple(warnings)


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over what the annotations say of the samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        facts = [sample.sample_id, sample.image_path.name, sample.phrase, sample.mask_fingerprint]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
