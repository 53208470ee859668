"""A run folder for a model that nobody trained here: what ``export``, ``eval`` and ``train --base`` take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import stretch
from rsrefseg.engines.system.files import atomic_directory, atomic_write_bytes

from ..checkpoints.model_file import save_model
from ..data.samples import open_dataset
from ..model.model import RSRefSeg
from ..synth import Domain, Scene, render_scene
from .base import BaseWeights
from .reference_inputs import (
    IMAGES,
    PHRASES_PER_IMAGE,
    ReferenceInput,
    pick_reference_inputs,
    save_reference_inputs,
)
from .run import Run, versions
from .tokenizer import open_tokenizer

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
    """Images and phrases for the proofs of exporting: of a data set where there is one, else of rendered scenes.

    Raises:
        BadInputError: the data set cannot be read or is empty.
    """
    if data is None:
        return tuple(_scene_input(scene, image_size) for scene in made_scenes())
    dataset = open_dataset(data)
    samples: Sequence[Any] = next((found for split in _SPLITS if (found := _samples(dataset, split))), ())
    if not samples:
        raise BadInputError(f"'{data}' has no samples in its splits {', '.join(_SPLITS)}: give another --data")
    return pick_reference_inputs(samples, image_size)


def write_brought_run(
    out: Path,
    model: RSRefSeg,
    base: BaseWeights,
    tokenizer: bytes,
    inputs: Sequence[ReferenceInput],
    header: dict[str, Any],
) -> Run:
    """Write the folder, whole or not at all.

    Args:
        out: new or empty.
        model: goes to ``merged.safetensors``.
        base: where its weights come from.
        tokenizer: content of ``tokenizer.json``; must read the phrases of ``inputs``.
        inputs: reference inputs.
        header: what the model file's header says of its origin.

    Raises:
        BadInputError: the tokenizer cannot read a phrase.
        RSRefSegError: the folder cannot be written.
    """
    check_new(out)
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


def _scene_input(scene: Scene, image_size: int) -> ReferenceInput:
    image = scene.image
    phrases = tuple(dict.fromkeys(referral.phrase for referral in scene.referrals))
    return ReferenceInput(torch.from_numpy(stretch(image, image_size)), (image.shape[0], image.shape[1]), phrases)


def _samples(dataset: Any, split: str) -> Sequence[Any]:
    try:
        return tuple(dataset.split(split))
    except BadInputError:  # it has no such split
        return ()
