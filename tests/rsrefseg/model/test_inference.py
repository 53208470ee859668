"""Folded stages equal the published ones in float64."""

import pytest
import torch
from torch import nn

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.inference.attention import AttentionChoice, AttentionForm
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.model import RSRefSeg, build_model
from tests.support.small import small_config
from tests.support.stage_inputs import as_tuple, stage_inputs
from tests.support.upstream import randomize


def awkward_model(**overrides: object) -> RSRefSeg:
    """Return a model in float64 with random biases, norms and position embeddings."""
    return randomize(build_model(small_config(**overrides)), seed=3).double()


def results(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # Stages ask for float32 pixels; as float64 they tell rounding from a fault.
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return as_tuple(module(*given))


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(
    "overrides", [{}, {"text_padding": "longest", "dense_prompt": False}], ids=["own", "published"]
)
@pytest.mark.parametrize("fused", [False, True], ids=["products", "fused"])
def test_a_folded_stage_equals_the_published_one(stage: Stage, overrides: dict[str, object], fused: bool) -> None:
    model = awkward_model(**overrides)
    given = stage_inputs(model, stage, phrases=3, images=2, dtype=torch.float64)
    wanted = results(model.stage(stage), given)
    # One operator has no parts.
    choice = AttentionChoice(AttentionForm.FOLDED, AttentionForm.ADDITIVE, query_parts=1 if fused else 2)
    found = results(fold_for_inference(model.stage(stage), choice, fused=fused), given)
    for left, right in zip(wanted, found, strict=True):
        assert left.shape == right.shape
        assert left.abs().max() > 0
        assert (left - right).abs().max() <= 1e-12 * left.abs().max()


@pytest.mark.parametrize("stage", [Stage.SIGLIP_VISION, Stage.SAM_ENCODER])
@pytest.mark.parametrize("fp16", [False, True])
def test_pixels_are_not_folded_into_weights_that_become_half(stage: Stage, fp16: bool) -> None:
    model = awkward_model()
    embedding = "embeddings.patch_embedding" if stage is Stage.SIGLIP_VISION else "image_encoder.patch_embed.proj"
    before = model.stage(stage).get_submodule(embedding).weight.detach().clone()
    folded = fold_for_inference(model.stage(stage), AttentionChoice(), fp16=fp16)
    assert folded.takes_pixels is not fp16
    assert torch.equal(folded.get_submodule(embedding).weight, before) is fp16
