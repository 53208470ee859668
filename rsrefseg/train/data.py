"""Reads and checks the samples of a training before the first step."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer

from ..data.formats import open_dataset
from ..data.samples import Sample
from ..data.verify import verify_samples
from .settings import DataSettings


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Training samples grouped by image, validation samples, and the tokenizer."""

    groups: tuple[tuple[Sample, ...], ...]
    validation: tuple[Sample, ...]
    tokenizer: Tokenizer
    resize_masks: bool = False


def read_samples(settings: DataSettings) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return training and validation samples after a check of their images and masks.

    Raises:
        BadInputError: the data set cannot be used.
    """
    assert settings.path is not None
    splits = [settings.train_split, *([settings.validation_split] if settings.validation_split else [])]
    samples = verify_samples(open_dataset(settings.path, settings.images), splits, settings.resize_masks)
    return samples[0], samples[1] if len(samples) > 1 else ()


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
