"""RSRefSeg 2 trains with LoRA as published, resumes and merges."""

from pathlib import Path

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_model, save_model
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.export.model_card import CardFacts, model_card
from rsrefseg.inference.attention import AttentionChoice
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import LoraSettings, model_config
from rsrefseg.model.lora import add_lora, count_parameters, trainable_parameters
from rsrefseg.model.model import build_model
from rsrefseg.model.rsrefseg2.sam2 import choose_mask
from rsrefseg.model.stages import model_contracts, run_stage, run_stages
from rsrefseg.runs.base import from_file, from_scratch
from rsrefseg.runs.merge import merge
from rsrefseg.train.command import run_training
from rsrefseg.train.config import LossWeights
from rsrefseg.train.settings import ModelSettings, resolve_settings
from tests.support.small import train_small
from tests.support.upstream import randomize
from tests.support.upstream2 import small_config2
from tests.support.words import write_word_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = small_config2()
PUBLISHED_LOSS = LossWeights(bce=5.0, dice=5.0)


def test_the_published_parameters_are_trained_at_full_size() -> None:
    model = build_model(model_config("rsrefseg2"), device="meta")
    with torch.device("meta"):
        add_lora(model, LoraSettings(dropout=0.0))
    trained = trainable_parameters(model)
    adapters = {name.partition(".")[0]: 0 for name in trained}
    for name, parameter in trained.items():
        if ".lora_" in name:
            adapters[name.partition(".")[0]] += parameter.numel()
    # The published count of the vision tower has 211,584 for its pooling head, which no prediction uses.
    head = 16 * (1152 + 1152) + 2 * 16 * (1152 + 4304)
    assert (adapters["sam_encoder"], adapters["siglip_vision"]) == (2_661_376, 4_192_768 - head)
    assert adapters["siglip_text"] + 2 == 4_018_178, "with SigLIP's scale and bias, which are in the prompter here"
    assert count_parameters(model).attn_prompter == 82_773_312 + 2
    assert {"sam_encoder.no_mem_embed", "sam_encoder.conv_s0.weight"} <= trained.keys()


def test_a_short_training_moves_all_trained_weights_and_merges(boxes: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_model(base, build_model(CONFIG, seed=1))
    write_word_tokenizer(tmp_path / "tokenizer.json", ["the red blue green white box"], CONFIG.siglip.vocab_size)
    lora = LoraSettings(rank=2, alpha=2, dropout=0.0)
    run = train_small(boxes, tmp_path / "run", from_file(base), model=CONFIG, loss=PUBLISHED_LOSS, lora=lora).run
    result = merge(run)
    assert result.adapters == 25
    before, after = load_model(base).state_dict(), load_model(run.merged_path).state_dict()
    still = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    moved = before.keys() - still
    assert {"sam_encoder.hiera.blocks.3.attn.qkv.weight", "sam_encoder.convs.0.weight", "attn_prompter.img_pe"} <= moved
    assert "attn_prompter.logit_scale" in moved
    assert "sam_encoder.hiera.blocks.3.mlp.proj_in.weight" in still


def test_gradient_checkpointing_covers_hiera(boxes: Path, tmp_path: Path) -> None:
    options = {"model": CONFIG, "loss": PUBLISHED_LOSS, "epochs": 1, "lora": None}
    plain, saving = (
        train_small(boxes, tmp_path / str(flag), from_scratch(), gradient_checkpointing=flag, **options).run
        for flag in (False, True)
    )
    left, right = (merge(run) and load_model(run.merged_path).state_dict() for run in (plain, saving))
    assert all(torch.allclose(left[name], tensor, atol=1e-5) for name, tensor in right.items())


def test_only_masks_that_were_trained_are_predicted(boxes: Path, tmp_path: Path) -> None:
    """Training changes the first of four masks: a base that is random never learns the others."""
    whole, random = tmp_path / "whole.safetensors", tmp_path / "random.safetensors"
    save_model(whole, build_model(CONFIG, seed=1))
    save_model(random, build_model(CONFIG, seed=1), random_weights=True)
    write_word_tokenizer(tmp_path / "tokenizer.json", ["the red blue green white box"], CONFIG.siglip.vocab_size)
    options = {"model": CONFIG, "loss": PUBLISHED_LOSS, "epochs": 1, "lora": None}
    scratch = train_small(boxes, tmp_path / "scratch", from_scratch(), **options).run
    merge(scratch)
    assert not load_model(scratch.merged_path).sam_decoder.choose_mask
    for base, chosen in ((whole, True), (random, False), (scratch.merged_path, False)):
        config = from_file(base).adapted(CONFIG)
        assert config.rsrefseg2.choose_mask == from_file(base).build(config, 0).sam_decoder.choose_mask == chosen


@torch.no_grad()
def test_without_the_choice_the_result_is_the_first_mask() -> None:
    model = randomize(build_model(CONFIG))
    decoder, contract = model.sam_decoder, model_contracts(model)[Stage.SAM_DECODER]
    generator = torch.Generator().manual_seed(0)
    given = {
        "image": torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator),
        "input_ids": torch.randint(200, (8, 64), generator=generator),
        "token_mask": torch.arange(64) < torch.arange(1, 9)[:, None],
    }
    given |= run_stages(model, **given)
    (first,) = run_stage(decoder.train(), contract, given).values()
    (chosen,) = run_stage(decoder.eval(), contract, given).values()
    assert (chosen != first).flatten(1).any(dim=1).any(), "a case in which the choice matters"
    decoder.choose_mask = False
    (found,) = run_stage(decoder, contract, given).values()
    assert torch.equal(found, first)
    (folded,) = run_stage(fold_for_inference(decoder, AttentionChoice()), contract, given).values()
    assert torch.allclose(folded, first, atol=1e-4 * first.abs().max().item())


def test_stability_is_counted_exactly_in_half_precision() -> None:
    logits = torch.full((1, 4, 65_536), -1.0)
    logits[:, 0] = 1.0
    logits[:, 0, :1000] = 0.0  # possible, not certain: 1.5% of the pixels, hence stable
    assert torch.equal(choose_mask(logits.half(), torch.zeros(1, 4)), logits[:, 0].half())


def test_missing_weights_lead_to_the_official_checkpoint(boxes: Path) -> None:
    with pytest.raises(MissingPartError, match=r"download rsrefseg2-rrsisd.*convert.*--base.*--from-scratch"):
        run_training({"path": [boxes]}, "rsrefseg2")
    with pytest.raises(BadInputError, match="--sam and --siglip"):
        run_training({"path": [boxes], "sam": "sam.pth", "siglip": "siglip"}, "rsrefseg2")


def test_the_model_card_names_the_architecture() -> None:
    record = {"model": CONFIG.to_dict(), "base": from_scratch().to_dict(), "data": {}}
    card = model_card(CardFacts("made/run", None, record, (), {}, random_weights=False))
    assert "RSRefSeg 2" in card
    assert "rsrefseg2 configuration" in card


def test_the_recipe_has_the_published_loss_and_adapters() -> None:
    settings = resolve_settings("rsrefseg2", {})
    assert settings.training.loss == PUBLISHED_LOSS
    assert settings.training.lora == LoraSettings(rank=16, alpha=16, dropout=0.0)
    assert settings.model.config() == model_config("rsrefseg2")


def test_its_text_padding_and_dense_prompt_cannot_be_changed() -> None:
    assert ModelSettings(preset="rsrefseg2-tiny").config() == model_config("rsrefseg2-tiny")
    for change in ({"text_padding": "fixed"}, {"dense_prompt": False}):
        with pytest.raises(BadInputError, match="RSRefSeg 2"):
            resolve_settings("rsrefseg2", change).model.config()
        with pytest.raises(BadInputError, match="RSRefSeg 2"):
            small_config2(**change)
