"""The FP32 reference of a bundle: PyTorch's outputs of every stage for a few real inputs."""

import numpy as np
from torch import Tensor

from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.model.config import ModelConfig
from rsrefseg.runs.reference_inputs import ReferenceInput, load_reference_inputs
from rsrefseg.runs.run import Run
from rsrefseg.runs.tokenizer import open_tokenizer


def reference_tensors(run: Run, config: ModelConfig) -> list[tuple[ReferenceInput, dict[str, Tensor]]]:
    """A run's reference inputs, each with the tensors that a bundle's first stages take, by contract name."""
    tokenizer = open_tokenizer(run, config)
    return [(entry, entry.tensors(tokenizer)) for entry in load_reference_inputs(run.reference_inputs_path)]


def reference_sample(entry: ReferenceInput, tensors: dict[str, Tensor]) -> ReferenceSample:
    """A reference input with the tensors of all stages, and its masks at the image's own size."""
    image_size = tensors["image"].shape[-1]
    masks = [
        upsample_logits(logits, image_size, entry.original_size) > 0 for logits in tensors["mask_logits"][:, 0].numpy()
    ]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return ReferenceSample(entry.phrases, arrays, np.stack(masks), entry.original_size)
