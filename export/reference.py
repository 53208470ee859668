"""The FP32 reference of a bundle: what PyTorch makes of a few real inputs, stage by stage."""

import numpy as np
import torch

from engines.images import upsample_logits
from engines.reference import ReferenceSample
from engines.text import Tokenizer
from rsrefseg.model import RSRefSeg
from rsrefseg.reference_inputs import ReferenceInput, load_reference_inputs
from rsrefseg.stages import run_stages
from rsrefseg.train.run import Run
from rsrefseg.train.setup import open_tokenizer


def reference_samples(model: RSRefSeg, run: Run) -> tuple[ReferenceSample, ...]:
    """Run the model on the run's reference inputs.

    Args:
        model: float32, in eval mode.
        run: whose inputs and tokenizer are used.
    """
    tokenizer = open_tokenizer(run, model.config)
    inputs = load_reference_inputs(run.reference_inputs_path)
    return tuple(_sample(model, tokenizer, entry) for entry in inputs)


def _sample(model: RSRefSeg, tokenizer: Tokenizer, entry: ReferenceInput) -> ReferenceSample:
    tokens = tokenizer.encode(entry.phrases)
    inputs = {
        "image": entry.image.unsqueeze(0),
        "input_ids": torch.from_numpy(tokens.input_ids),
        "token_mask": torch.from_numpy(tokens.token_mask),
    }
    outputs = run_stages(model, **inputs)
    image_size = model.config.sam.image_size
    masks = [
        upsample_logits(logits, image_size, entry.original_size) > 0 for logits in outputs["mask_logits"][:, 0].numpy()
    ]
    tensors = {name: tensor.numpy() for name, tensor in (inputs | outputs).items()}
    return ReferenceSample(entry.phrases, tensors, np.stack(masks), entry.original_size)
