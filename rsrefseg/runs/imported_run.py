"""A run folder for a model that was not trained here: what ``export``, ``eval`` and ``train --base`` take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_directory, atomic_write_bytes

from ..checkpoints.model_file import save_model
from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..data.formats import open_dataset
from ..model.config import ModelConfig
from ..model.model import RSRefSeg
from ..synth import Domain, Scene, render_scene
from .base import BaseWeights, random_weights
from .reference_inputs import (
    IMAGES,
    PHRASES_PER_IMAGE,
    ReferenceInput,
    pick_reference_inputs,
    save_reference_inputs,
)
from .run import Run, versions
from .tokenizer import open_tokenizer, word_tokenizer

_SCENE_SIZE = 256
_SPLITS = ("val", "test", "train")


def check_new(out: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        BadInputError: it does.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInputError(f"'{out}' is not empty: give another --out")


def made_scenes() -> tuple[Scene, ...]:
    """A few rendered scenes, always the same."""
    return tuple(render_scene(seed, Domain.A, _SCENE_SIZE, PHRASES_PER_IMAGE) for seed in range(IMAGES))


def reference_inputs(data: Path | None, image_size: int) -> tuple[ReferenceInput, ...]:
    """Images and phrases that prove an export: of a data set where one is given, else of rendered scenes.

    Raises:
        BadInputError: the data set cannot be read or is empty.
    """
    if data is None:
        scenes = made_scenes()
        return tuple(
            ReferenceInput.of(one.image, (item.phrase for item in one.referrals), image_size) for one in scenes
        )
    dataset = open_dataset(data)
    split = next((split for split in _SPLITS if split in dataset.splits), None)
    if split is None:
        raise BadInputError(f"'{data}' has no samples in its splits {', '.join(_SPLITS)}: give another --data")
    return pick_reference_inputs(dataset.split(split), image_size)


def write_imported_run(
    out: Path,
    model: RSRefSeg,
    base: BaseWeights,
    tokenizer: bytes,
    inputs: Sequence[ReferenceInput],
    header: dict[str, Any],
) -> Run:
    """Write the folder, whole or not at all.

    Args:
        out: new or empty (``check_new``).
        model: goes to ``merged.safetensors``.
        base: where its weights come from.
        tokenizer: content of ``tokenizer.json``; must read the phrases of ``inputs``.
        inputs: reference inputs.
        header: what the model file's header says of its origin.

    Raises:
        BadInputError: the tokenizer cannot read a phrase.
        RSRefSegError: the folder cannot be written.
    """
    with atomic_directory(out) as folder:
        run = Run(folder)
        atomic_write_bytes(run.tokenizer_path, tokenizer)
        reader = open_tokenizer(run, model.config)
        for entry in inputs:
            reader.encode(entry.phrases)
        save_reference_inputs(run.reference_inputs_path, inputs)
        save_model(run.merged_path, model, **header)
        total = sum(parameter.numel() for parameter in model.parameters())
        run.write_record(
            {
                "model": model.config.to_dict(),
                "train": {},
                "base": base.to_dict(),
                "data": {},
                "parameters": {"trained": 0, "total": total},
                "versions": versions(),
            }
        )
    return Run(out)


def make_random_run(out: Path, config: ModelConfig, seed: int = 0, tokenizer: Path | None = None) -> Run:
    """Write a run of random weights that can be exported and measured, stamped as random.

    Args:
        out: new or empty folder.
        config: what to build.
        seed: decides the weights.
        tokenizer: SigLIP's; without one, words of rendered scenes.

    Raises:
        BadInputError: the folder is not empty, or the tokenizer does not fit.
        RSRefSegError: the folder cannot be written.
    """
    check_new(out)
    base = random_weights()
    inputs = reference_inputs(None, config.sam.image_size)
    phrases = [referral.phrase for scene in made_scenes() for referral in scene.referrals]
    content = tokenizer_bytes(tokenizer, config) if tokenizer else word_tokenizer(phrases, config)
    header = {"random_weights": True, "merge": {"adapters": 0}, "source": {"base": base.to_dict(), "seed": seed}}
    return write_imported_run(out, base.build(config, seed), base, content, inputs, header)
