"""Presets have the published sizes; invalid configurations raise errors at construction."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.model.config import ModelConfig, Preset, SiglipConfig, TransformerConfig, model_config
from rsrefseg.model.model import build_model, geometry
from rsrefseg.model.preprocessing import PROFILES
from tests.support.runs import refused
from tests.support.small import small_config


@pytest.mark.parametrize(("preset", "sam_millions"), [(Preset.B, 94), (Preset.L, 312)])
def test_the_papers_presets_have_the_published_sizes(preset: Preset, sam_millions: int) -> None:
    config = model_config(preset)
    model = build_model(config, device="meta")
    sizes = geometry(config)
    assert (sizes.image_size, sizes.clip_tokens, sizes.clip_channels) == (1024, 729, 1152)
    assert (sizes.prompt_tokens, sizes.prompt_channels) == (49, 256)
    assert (sizes.embedding_grid, sizes.mask_grid, sizes.text_length) == (64, 256, 64)

    def millions(*stages: Stage) -> float:
        return sum(p.numel() for stage in stages for p in model.stage(stage).parameters()) / 1e6

    width = 1152
    # The attention pooling head that the published tower (428.2 M) has and this one leaves out.
    head = 4 * width * (width + 1) + (2 * width * 4304 + 4304 + width) + 2 * width + width
    assert millions(Stage.SIGLIP_VISION) == pytest.approx(428.2 - head / 1e6, abs=0.1)
    assert millions(Stage.SIGLIP_TEXT) == pytest.approx(450, abs=0.5)
    assert millions(Stage.SAM_ENCODER, Stage.SAM_DECODER) == pytest.approx(sam_millions, abs=0.5)


TOWER = TransformerConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
SAM = small_config().sam


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: model_config("huge"), "tiny, s, b, l"),
        (lambda: replace(TOWER, num_attention_heads=5), "attention heads"),
        (lambda: TransformerConfig.from_dict(TOWER.to_dict() | {"num_attention_heads": 0}), "num_attention_heads"),
        (lambda: SiglipConfig(64, 8, TOWER, replace(TOWER, hidden_size=12), 32), "one hidden_size"),
        (lambda: SiglipConfig(64, 65, TOWER, TOWER, 32), "patch_size"),
        (lambda: SiglipConfig(64, 8, TOWER, TOWER, 32, pad_token_id=32), "pad_token_id"),
        (lambda: replace(SAM, image_size=65), "multiple"),
        (lambda: replace(SAM, prompt_channels=36), "prompt_channels"),
        (lambda: replace(SAM, global_attn_indexes=(2,)), "global_attn_indexes"),
        (lambda: small_config(text_padding="none"), "fixed, longest"),
        (lambda: replace(model_config("rsrefseg2"), preprocessing=PROFILES["aerial-d"]), "1024 px, not 480 px"),
        (lambda: ModelConfig.from_dict({"preset": "b"}), "siglip"),
        (lambda: ModelConfig.from_dict(small_config().to_dict() | {"colour": "red"}), "colour"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(make: Callable[[], object], fact: str) -> None:
    with refused(fact):
        make()
