"""FLOPs are those of the published model, parameters and bytes those of the graphs."""

import pytest
import torch
from torch import nn

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, TensorSpec, stage_contracts
from rsrefseg.export.costs import count_flops
from rsrefseg.inference.attention import AttentionChoice
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import model_config
from rsrefseg.model.model import RSRefSeg, build_stage, geometry


def test_flops_are_those_of_the_published_modules(
    bundle: Bundle, fused_bundle: Bundle, model: RSRefSeg, stage: Stage
) -> None:
    record = bundle.manifest.stages[stage]
    saved = 0
    if stage is Stage.SAM_ENCODER:
        # One block has windows of 3 over 4 x 4 tokens: 20 of 36 are padding, for which nothing is projected.
        saved = 20 * 2 * 4 * model.config.sam.embed_dim**2
    else:  # the same attention, as one operator
        assert fused_bundle.manifest.stages[stage].flops == record.flops
    published = count_flops(model.stage(stage), record.contract)
    assert record.flops + saved == pytest.approx(published, rel=0.02)


# The published arithmetic, GFLOP for one image and one phrase.
@pytest.mark.parametrize(
    ("preset", "stage", "gflop", "share"),
    [
        ("b", Stage.SIGLIP_VISION, 666, 1.0),
        ("b", Stage.SIGLIP_TEXT, 53, 1.0),
        ("b", Stage.SAM_DECODER, 4.4, 1.0),
        ("b", Stage.SAM_ENCODER, 972, 0.968),
        ("l", Stage.SAM_ENCODER, 2986, 0.955),
    ],
)
def test_full_size_flops_are_the_published_ones(preset: str, stage: Stage, gflop: float, share: float) -> None:
    """Counted on modules without memory. Padding is not projected: of 70 x 70 tokens in windows of 14, 804."""
    config = model_config(preset)
    contract = stage_contracts(geometry(config))[stage]
    with torch.device("meta"):
        published = build_stage(stage, config).eval()
        folded = fold_for_inference(build_stage(stage, config).eval(), AttentionChoice())
        counts = [count_flops(module, contract) / 1e9 for module in (published, folded)]
    assert counts[0] == pytest.approx(gflop, rel=0.02)
    assert counts[1] == pytest.approx(share * counts[0], rel=0.005)


def test_flops_are_counted_at_the_contracts_sizes() -> None:
    """By hand: 2 for each multiply-add of 5 phrases, 7 tokens, 3 by 2 weights."""
    tokens = TensorSpec("tokens", "float32", (Dim("phrases", 1, 5, 9), 7, 3))
    contract = StageContract(Stage.SIGLIP_TEXT, (tokens,), ())
    assert count_flops(nn.Sequential(nn.Linear(3, 2), nn.GELU()), contract) == 2 * 5 * 7 * 3 * 2


def test_parameters_and_bytes_are_those_of_the_model_and_the_files(bundle: Bundle, model: RSRefSeg) -> None:
    """Weights that are equal are stored once, constants are stored as well: the count is near the model's own."""
    for stage, record in bundle.manifest.stages.items():
        stored = sum(file.size_bytes for file in (record.graph, *record.data))
        assert 4 * record.parameters <= record.weight_bytes <= stored
        if stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER):
            of_model = sum(parameter.numel() for parameter in model.stage(stage).parameters())
            assert record.parameters == pytest.approx(of_model, rel=0.05)
