"""The FP32 reference of a bundle: PyTorch's outputs of every stage for a few real inputs."""

import numpy as np
import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import StageContract
from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.stages import run_stage
from rsrefseg.runs.reference_inputs import ReferenceInput, load_reference_inputs
from rsrefseg.runs.run import Run
from rsrefseg.runs.tokenizer import open_tokenizer


class ReferenceMaker:
    """Runs a run's reference inputs through the stages, one after the other, so that one at a time is in memory.

    Args:
        run: source of the inputs and the tokenizer.
        config: of its model.
    """

    def __init__(self, run: Run, config: ModelConfig) -> None:
        tokenizer = open_tokenizer(run, config)
        self._image_size = config.sam.image_size
        self._inputs = load_reference_inputs(run.reference_inputs_path)
        self._tensors: list[dict[str, Tensor]] = []
        for entry in self._inputs:
            tokens = tokenizer.encode(entry.phrases)
            self._tensors.append(
                {
                    "image": entry.image.unsqueeze(0),
                    "input_ids": torch.from_numpy(tokens.input_ids),
                    "token_mask": torch.from_numpy(tokens.token_mask),
                }
            )

    def run(self, module: nn.Module, contract: StageContract) -> None:
        """Run the next stage: a float32 module in eval mode and its contract."""
        for tensors in self._tensors:
            tensors |= run_stage(module, contract, tensors)

    def samples(self) -> tuple[ReferenceSample, ...]:
        """The inputs with all outputs; call after the last stage."""
        return tuple(map(self._sample, self._inputs, self._tensors))

    def _sample(self, entry: ReferenceInput, tensors: dict[str, Tensor]) -> ReferenceSample:
        masks = [
            upsample_logits(logits, self._image_size, entry.original_size) > 0
            for logits in tensors["mask_logits"][:, 0].numpy()
        ]
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return ReferenceSample(entry.phrases, arrays, np.stack(masks), entry.original_size)
