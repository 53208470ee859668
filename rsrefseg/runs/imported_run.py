"""Writes run folders for models that rsrefseg did not train, for ``export``, ``eval`` and ``train --base``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_directory, atomic_write_bytes

from ..checkpoints.model_file import load_model, save_model
from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..data.formats import open_dataset
from ..model.config import ModelConfig, Preset
from ..model.model import RSRefSeg
from ..synth import Domain, Scene, render_scene
from .base import BaseWeights, random_weights, shipped, shipped_base, shipped_tokenizer
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
    """Check that a run folder is new or empty.

    Raises:
        BadInputError: the folder is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInputError(f"'{out}' is not empty: give another --out")


def rendered_scenes() -> tuple[Scene, ...]:
    """Render a few scenes, the same in every call."""
    return tuple(render_scene(seed, Domain.A, _SCENE_SIZE, PHRASES_PER_IMAGE) for seed in range(IMAGES))


def reference_inputs(data: Path | None, config: ModelConfig) -> tuple[ReferenceInput, ...]:
    """Return images and phrases for the check of an export, from a data set or, without one, from rendered scenes.

    Raises:
        BadInputError: the data set cannot be read or is empty.
    """
    if data is None:
        scenes = rendered_scenes()
        return tuple(ReferenceInput.of(one.image, (item.phrase for item in one.referrals), config) for one in scenes)
    dataset = open_dataset(data)
    split = next((split for split in _SPLITS if split in dataset.splits), None)
    if split is None:
        raise BadInputError(f"'{data}' has no samples in its splits {', '.join(_SPLITS)}: give another --data")
    return pick_reference_inputs(dataset.split(split), config)


def write_imported_run(
    out: Path,
    model: RSRefSeg,
    base: BaseWeights,
    tokenizer: bytes,
    inputs: Sequence[ReferenceInput],
    header: dict[str, Any],
) -> Run:
    """Write a run folder atomically.

    Args:
        out: new or empty folder (``check_new``).
        model: model to write as ``merged.safetensors``.
        base: source of its weights.
        tokenizer: content of ``tokenizer.json``; must be able to encode the phrases of ``inputs``.
        inputs: reference inputs.
        header: origin of the model, for the header of its file.

    Raises:
        BadInputError: the tokenizer cannot encode a phrase.
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


def make_base_run(out: Path) -> Run:
    """Write a run with the shipped tiny base, as it is before any training.

    Args:
        out: new or empty folder.

    Raises:
        BadInputError: the folder is not empty.
        RSRefSegError: the folder cannot be written.
    """
    check_new(out)
    base, model = shipped(Preset.TINY), load_model(shipped_base())
    inputs = reference_inputs(None, model.config)
    header = {"merge": {"adapters": 0}, "source": {"base": base.to_dict()}}
    return write_imported_run(out, model, base, shipped_tokenizer().read_bytes(), inputs, header)


def make_random_run(out: Path, config: ModelConfig, seed: int = 0, tokenizer: Path | None = None) -> Run:
    """Write a run with random weights, marked as random, for export and measurements.

    Args:
        out: new or empty folder.
        config: configuration of the model.
        seed: seed of the weights.
        tokenizer: tokenizer of SigLIP; None to build one from the words of rendered scenes.

    Raises:
        BadInputError: the folder is not empty, or the tokenizer does not fit.
        RSRefSegError: the folder cannot be written.
    """
    check_new(out)
    base = random_weights()
    inputs = reference_inputs(None, config)
    phrases = [referral.phrase for scene in rendered_scenes() for referral in scene.referrals]
    content = tokenizer_bytes(tokenizer, config) if tokenizer else word_tokenizer(phrases, config)
    header = {"random_weights": True, "merge": {"adapters": 0}, "source": {"base": base.to_dict(), "seed": seed}}
    return write_imported_run(out, base.build(config, seed), base, content, inputs, header)
