"""Run the five stages and return every tensor between them, for the checks of merging and export."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Stage, StageContract, stage_contracts

from .model import RSRefSeg, geometry


def model_contracts(model: RSRefSeg) -> dict[Stage, StageContract]:
    """Return the contracts of all stages: names, dtypes and shapes of inputs and outputs."""
    return stage_contracts(geometry(model.config))


def run_stages(model: RSRefSeg, image: Tensor, input_ids: Tensor, token_mask: Tensor) -> dict[str, Tensor]:
    """Run the five stages in order on one image and P phrases.

    Args:
        model: in eval mode.
        image: (1, 3, S, S) uint8.
        input_ids: (P, L) int64.
        token_mask: (P, L) bool.

    Returns:
        Every stage output by its contract name.
    """
    tensors = {"image": image, "input_ids": input_ids, "token_mask": token_mask}
    outputs: dict[str, Tensor] = {}
    for stage, contract in model_contracts(model).items():
        outputs |= run_stage(model.stage(stage), contract, tensors | outputs)
    return outputs


@torch.inference_mode()
def run_stage(module: nn.Module, contract: StageContract, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one stage on its inputs among ``given``, by contract name; return its outputs by contract name."""
    results = module(*(given[spec.name] for spec in contract.inputs))
    results = results if isinstance(results, tuple) else (results,)
    return {spec.name: result for spec, result in zip(contract.outputs, results, strict=True)}
