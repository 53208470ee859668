"""Everything checked and prepared before the first step, so that almost every refusal comes at once."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.system.files import unwritable
from rsrefseg.engines.text import Tokenizer

from ..data.headers import size_in_header
from ..data.loading import SizeMismatch, fit_mask, verify_images
from ..data.samples import Sample, group_by_image, open_dataset

_LEAST_FREE_MIB = 64


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The samples of a run: training images with their phrases, validation samples, and the tokenizer."""

    train_groups: tuple[tuple[Sample, ...], ...]
    validation: tuple[Sample, ...]
    tokenizer: Tokenizer
    on_size_mismatch: SizeMismatch = "refuse"


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Which samples to train on; ``images`` is their folder where that is not the data set's own."""

    path: Path
    train_split: str = "train"
    validation_split: str | None = "val"
    resize_masks: bool = False
    images: Path | None = None


def read_samples(choice: DataChoice) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation samples, every image known to exist and every mask to fit (or allowed to be resized).

    Raises:
        BadInputError: the data set cannot be used as it is.
    """
    dataset = open_dataset(choice.path, choice.images)
    splits = [choice.train_split, *([choice.validation_split] if choice.validation_split else [])]
    verify_images(dataset, splits)
    samples = [dataset.split(split) for split in splits]
    if not choice.resize_masks:
        for split in samples:
            _refuse_size_differences(split)
    return samples[0], samples[1] if len(samples) > 1 else ()


def _refuse_size_differences(samples: Iterable[Sample]) -> None:
    """Compare sizes by the images' headers alone: a whole data set takes seconds."""
    for group in group_by_image(samples):
        size = size_in_header(group[0].image_path)
        different = [sample for sample in group if sample.mask_size != size]
        if not different:
            continue
        image = read_image(group[0].image_path)  # turned upright, as training will see it
        for sample in different:
            fit_mask(sample, (image.shape[0], image.shape[1]))


def check_phrases(samples: Iterable[Sample], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Make sure that the tokenizer can read every phrase, before a long run meets the first that it cannot.

    Returns:
        One line for each phrase that is cut or holds unknown words.

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


def check_output(path: Path) -> None:
    """Refuse an output folder that cannot be written or whose disk is nearly full, before any work.

    Raises:
        RSRefSegError: one of both.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may have been faster
        free_mib = shutil.disk_usage(path).free / 2**20
    except OSError as error:
        raise unwritable(path, error) from error
    if free_mib < _LEAST_FREE_MIB:
        raise BadInputError(
            f"only {free_mib:.0f} MiB free on the disk of '{path}', at least {_LEAST_FREE_MIB} are needed: "
            "free some or choose another place"
        )
