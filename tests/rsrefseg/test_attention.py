"""All forms of SAM's attention are the same function: in float64 they agree to rounding."""

import itertools
from dataclasses import replace

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from rsrefseg.engines.errors import BadInputError
from rsrefseg.inference.attention import (
    FORMS,
    AttentionChoice,
    AttentionForm,
    RelativePositionAttention,
    Target,
    default_attention,
    parse_attention,
)
from rsrefseg.inference.image_encoder import LeanImageEncoder, MlpInParts
from rsrefseg.model.config import model_config
from rsrefseg.model.model import build_model
from tests.support.small import small_config


def published(grid_size: int, channels: int = 24, heads: int = 2) -> Attention:
    """segment-anything's own attention in float64, with position embeddings that matter (they start as zeros)."""
    torch.manual_seed(7)
    attention = Attention(channels, heads, qkv_bias=True, use_rel_pos=True, input_size=(grid_size, grid_size)).double()
    with torch.no_grad():
        for table in (attention.rel_pos_h, attention.rel_pos_w):
            table.normal_()
    return attention.eval()


@pytest.mark.parametrize(("form", "parts"), list(itertools.product(AttentionForm, (1, 2, 6))))
def test_every_form_equals_the_published_one(form: AttentionForm, parts: int) -> None:
    original = published(6)
    x = torch.randn(3, 6, 6, 24, dtype=torch.float64)
    with torch.no_grad():
        wanted = original(x).flatten(1, 2)
        found = RelativePositionAttention(original, form, 6, query_parts=parts)(x.flatten(1, 2))
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_position_embeddings_of_another_size_are_resampled_as_published() -> None:
    original = published(9)
    x = torch.randn(1, 5, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        found = RelativePositionAttention(original, AttentionForm.FOLDED, 5)(x.flatten(1, 2))
        assert (found - original(x).flatten(1, 2)).abs().max() <= 1e-12 * found.abs().max()


def test_queries_are_taken_in_equal_parts_only() -> None:
    with pytest.raises(BadInputError, match="6 rows of queries cannot be taken in 4"):
        RelativePositionAttention(published(6), AttentionForm.PUBLISHED, 6, query_parts=4)


@pytest.mark.parametrize("target", [Target.ONNXRUNTIME, Target.OPENVINO])
@pytest.mark.parametrize("half", [False, True])
def test_on_cpus_the_default_keeps_what_is_computed_of_a_part_small(target: Target, half: bool) -> None:
    tiny = default_attention(model_config("tiny").sam, target, half)
    assert (tiny.query_parts, tiny.mlp_parts) == (1, 1)
    wanted = AttentionChoice(AttentionForm.FOLDED, AttentionForm.ADDITIVE, query_parts=8)
    if target is Target.ONNXRUNTIME and not half:
        wanted = replace(wanted, mlp_parts=4)
    for preset in ("b", "l"):
        assert default_attention(model_config(preset).sam, target, half) == wanted


def test_every_target_says_why_it_has_its_form() -> None:
    assert set(FORMS) == set(Target)
    for forms in FORMS.values():
        assert len(forms.reason) > 50
        assert "\n" not in forms.reason
    assert default_attention(model_config("b").sam, Target.TENSORRT).query_parts == 1
    assert "not measured" in FORMS[Target.TENSORRT].reason


def test_another_form_can_be_asked_for() -> None:
    default = AttentionChoice(AttentionForm.FOLDED, AttentionForm.ADDITIVE, 16)
    assert parse_attention("windowed=published", default) == replace(default, windowed=AttentionForm.PUBLISHED)
    asked = parse_attention("windowed=additive, global=folded:4", default)
    assert asked == AttentionChoice(AttentionForm.ADDITIVE, AttentionForm.FOLDED, 4)
    assert parse_attention("global=folded", default).query_parts == 1
    assert parse_attention("mlp=2", default) == replace(default, mlp_parts=2)


@pytest.mark.parametrize(
    "text", ["", "folded", "windowed=fused", "windowed=folded:2", "global=folded:0", "global=:4", "mlp=0", "mlp"]
)
def test_a_form_that_is_none_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(BadInputError, match=r"--attention.*windowed=FORM,global=FORM:PARTS,mlp=PARTS.*published"):
        parse_attention(text, AttentionChoice())


@pytest.mark.parametrize("form", list(AttentionForm))
def test_a_whole_encoder_keeps_its_result(form: AttentionForm) -> None:
    encoder = build_model(small_config(), seed=3).sam_encoder.double()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "rel_pos" in name:
                parameter.normal_()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    pixels = (image.double() - encoder.pixel_mean) / encoder.pixel_std
    with torch.no_grad():
        wanted = encoder.image_encoder(pixels)
        lean = LeanImageEncoder(encoder.image_encoder, AttentionChoice(form, form, query_parts=2, mlp_parts=4))
        found = lean(pixels)
    assert all(isinstance(block.attn, RelativePositionAttention) for block in lean.blocks)
    assert all(isinstance(block.mlp, MlpInParts) for block in lean.blocks)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
