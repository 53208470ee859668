"""Random inputs of one stage of a model."""

import torch
from torch import Tensor

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.model.model import RSRefSeg
from rsrefseg.model.stages import model_contracts


def stage_inputs(
    model: RSRefSeg, stage: Stage, phrases: int = 3, images: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Return inputs of a stage in contract order; phrases have 5, 3, 2 or 4 tokens."""
    noise = torch.Generator().manual_seed(4)
    inputs = []
    for spec in model_contracts(model)[stage].inputs:
        shape = spec.sized(phrases=phrases, images=images)
        if spec.dtype == "float32":
            inputs.append(torch.randn(shape, generator=noise, dtype=dtype))
        elif spec.dtype == "bool":
            tokens = torch.tensor([5, 3, 2, 4]).repeat(phrases)[:phrases]
            inputs.append(torch.arange(shape[1]).expand(shape) < tokens[:, None])
        else:
            high = 256 if spec.dtype == "uint8" else 32
            inputs.append(torch.randint(0, high, shape, generator=noise, dtype=getattr(torch, spec.dtype)))
    return tuple(inputs)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a stage as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
