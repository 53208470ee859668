"""The samples of a training, checked before the first step."""

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
    """What a training reads: training samples by image, validation samples, and the tokenizer."""

    groups: tuple[tuple[Sample, ...], ...]
    validation: tuple[Sample, ...]
    tokenizer: Tokenizer
    resize_masks: bool = False


def read_samples(settings: DataSettings) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation samples whose images exist and whose masks fit, or may be resized.

    Raises:
        BadInputError: the data set cannot be used as it is.
    """
    assert settings.path is not None
    splits = [settings.train_split, *([settings.validation_split] if settings.validation_split else [])]
    samples = verify_samples(open_dataset(settings.path, settings.images), splits, settings.resize_masks)
    return samples[0], samples[1] if len(samples) > 1 else ()


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
