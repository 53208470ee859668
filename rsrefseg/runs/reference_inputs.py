"""Stores a few real inputs with a run, so that merging and export can be checked without the data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.text import Tokenizer

from ..checkpoints.model_file import load_tensors, save_tensors
from ..data.samples import Sample, group_by_image
from ..model.config import ModelConfig

IMAGES = 3
PHRASES_PER_IMAGE = 4


@dataclass(frozen=True, slots=True)
class ReferenceInput:
    """An image at the network's size, (3, S, S) uint8, its original size (H, W), and its phrases."""

    image: Tensor
    original_size: tuple[int, int]
    phrases: tuple[str, ...]

    @classmethod
    def of(cls, image: npt.NDArray[np.uint8], phrases: Iterable[str], config: ModelConfig) -> Self:
        """Resize an image, (H, W, 3) uint8, to the input of a model and remove repeated phrases."""
        stretched = torch.from_numpy(config.stretch(image))
        return cls(stretched, (image.shape[0], image.shape[1]), tuple(dict.fromkeys(phrases))[:PHRASES_PER_IMAGE])

    def tensors(self, tokenizer: Tokenizer) -> dict[str, Tensor]:
        """Return the inputs of the first stages by contract name: image (1, 3, S, S); input_ids, token_mask (P, L)."""
        tokens = tokenizer.encode(self.phrases)
        ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.token_mask)
        return {"image": self.image.unsqueeze(0), "input_ids": ids, "token_mask": mask}


def pick_reference_inputs(samples: Sequence[Sample], config: ModelConfig) -> tuple[ReferenceInput, ...]:
    """Return the images with the most phrases, in order of samples, with their distinct phrases."""
    groups = sorted(group_by_image(samples), key=len, reverse=True)[:IMAGES]
    return tuple(
        ReferenceInput.of(read_image(group[0].image_path), (sample.phrase for sample in group), config)
        for group in groups
    )


def save_reference_inputs(path: Path, inputs: Sequence[ReferenceInput]) -> None:
    """Write inputs as safetensors with phrases and sizes in the header."""
    tensors = {f"{index}/image": entry.image for index, entry in enumerate(inputs)}
    header = [{"phrases": entry.phrases, "original_size": entry.original_size} for entry in inputs]
    save_tensors(path, tensors, {"inputs": header})


def load_reference_inputs(path: Path) -> tuple[ReferenceInput, ...]:
    """Read the file that ``save_reference_inputs`` writes.

    Raises:
        BadInputError: the file is missing or damaged.
    """
    file = load_tensors(path)
    try:
        return tuple(
            ReferenceInput(file.tensors[f"{index}/image"], tuple(entry["original_size"]), tuple(entry["phrases"]))
            for index, entry in enumerate(file.header["inputs"])
        )
    except (KeyError, TypeError) as error:
        raise BadInputError(f"'{path}' contains no reference inputs: it is another file with this name") from error
