"""Everything checked and prepared before the first step, so that almost every refusal comes at once."""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraModel

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_bytes, unwritable
from rsrefseg.engines.text import Tokenizer

from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..data.formats import open_dataset
from ..data.loading import SizeMismatch
from ..data.samples import Sample
from ..data.verify import verify_samples
from ..model.config import ModelConfig
from ..model.lora import add_lora, train_everything
from ..model.model import RSRefSeg
from ..model.tokenizer import write_word_tokenizer
from .base import BaseKind, BaseWeights, shipped_tokenizer
from .config import TrainConfig
from .run import Run

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
    splits = [choice.train_split, *([choice.validation_split] if choice.validation_split else [])]
    samples = verify_samples(open_dataset(choice.path, choice.images), splits, choice.resize_masks)
    return samples[0], samples[1] if len(samples) > 1 else ()


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


def write_tokenizer(
    run: Run, base: BaseWeights, tokenizer: Path | None, config: ModelConfig, phrases: list[str]
) -> None:
    """Put the tokenizer of the run in its folder: a given one, the base's own, or one made from the phrases.

    Raises:
        BadInputError: the one that is needed cannot be read.
    """
    if base.files is not None:
        source = tokenizer if tokenizer is not None else Path(base.files.siglip.path)
        atomic_write_bytes(run.tokenizer_path, tokenizer_bytes(source, config))
        return
    if tokenizer is None and base.kind is BaseKind.SHIPPED:
        tokenizer = shipped_tokenizer()
    if tokenizer is None and base.kind is BaseKind.FILE:
        beside = Path(base.path or "").with_name("tokenizer.json")
        if not beside.is_file():
            raise BadInputError(f"no tokenizer beside '{base.path}': give one with --tokenizer")
        tokenizer = beside
    if tokenizer is None:
        write_word_tokenizer(run.tokenizer_path, phrases, config.siglip.vocab_size)
        return
    try:
        content = tokenizer.read_bytes()
    except OSError as error:
        raise BadInputError(f"the tokenizer '{tokenizer}' cannot be read: {error.strerror}") from error
    atomic_write_bytes(run.tokenizer_path, content)


def open_tokenizer(run: Run, config: ModelConfig) -> Tokenizer:
    """The run's tokenizer, fit for its model.

    Raises:
        BadInputError: its vocabulary is larger than the model's.
    """
    siglip = config.siglip
    tokenizer = Tokenizer(run.tokenizer_path, siglip.text_length, config.text_padding, siglip.pad_token_id)
    if tokenizer.vocabulary_size > siglip.vocab_size:
        raise BadInputError(
            f"'{run.tokenizer_path}' has {tokenizer.vocabulary_size} tokens, the model {siglip.vocab_size}: "
            "give the tokenizer that belongs to these weights"
        )
    return tokenizer


def prepare_model(base: BaseWeights, config: ModelConfig, train: TrainConfig) -> tuple[RSRefSeg, LoraModel | None]:
    """The model to train, marked; with LoRA also peft's handle of it. The seed decides every random weight."""
    model = base.build(config, train.seed)
    if train.lora is None:
        train_everything(model)
        return model, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        return model, add_lora(model, train.lora)


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


def versions() -> dict[str, Any]:
    """Versions a run's result may depend on."""
    packages = ("torch", "transformers", "segment-anything", "peft", "accelerate", "numpy", "rsrefseg")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
