"""A small SigLIP with massive activations in one token and channel, as large models have."""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.export.precision.half_model import HalfModel
from rsrefseg.export.precision.plan import PrecisionPlan
from rsrefseg.model.model import RSRefSeg, build_model
from rsrefseg.model.stages import model_contracts, run_stage
from tests.support.small import small_config

CHANNEL, TOKEN, UNIT = 3, 0, 5
VISION = Stage.SIGLIP_VISION
# Massive activations in the residual stream, each addition within float16: what large SigLIP models have
RESIDUAL = {4: 40_000.0, 7: 40_000.0}


def planted_model(writes: Mapping[int, float], layers: int = 12) -> RSRefSeg:
    """Return a model whose vision MLPs add these values, by block, to a channel of one token."""
    config = small_config()
    vision = replace(config.siglip.vision, num_hidden_layers=layers)  # two half blocks each
    model = build_model(replace(config, siglip=replace(config.siglip, vision=vision)), seed=3)
    tower = model.siglip_vision
    assert isinstance(tower.embeddings.position_embedding, nn.Embedding)
    with torch.no_grad():
        # This channel so outweighs the token's others that its layer norm is nearly the root of their number, 4.8.
        tower.embeddings.position_embedding.weight[TOKEN, CHANNEL] = 60.0
        for block, amount in writes.items():
            mlp = tower.encoder.layers[block].mlp
            mlp.fc1.weight[UNIT] = 0.0
            mlp.fc1.weight[UNIT, CHANNEL] = 40.0
            mlp.fc1.bias[UNIT] = -40.0 * 3.5  # other tokens stay below 3.5: their unit is off
            mlp.fc2.weight[:, UNIT] = 0.0
            mlp.fc2.weight[CHANNEL, UNIT] = amount / (40.0 * (23**0.5 - 3.5))
    return model


def vision_model(model: RSRefSeg, plan: PrecisionPlan | None = None, samples: int = 2) -> HalfModel:
    """Run the vision stage of a model on noise images."""
    contract = model_contracts(model)[VISION]
    return HalfModel(
        run=Path("planted"),
        contracts={VISION: contract},
        samples=tuple(_sample(model, seed) for seed in range(samples)),
        load=lambda stage: copy.deepcopy(model.stage(stage)),
        plan=plan or {},
    )


def _sample(model: RSRefSeg, seed: int) -> ReferenceSample:
    noise = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=noise, dtype=torch.uint8)
    outputs = run_stage(model.stage(VISION), model_contracts(model)[VISION], {"image": image})
    tensors = {"image": image.numpy()} | {name: tensor.numpy() for name, tensor in outputs.items()}
    return ReferenceSample(("noise",), tensors, np.zeros((1, 64, 64), np.bool_), (64, 64))
