"""Somebody else's RSRefSeg, built here anew from transformers and peft, becomes a run of ours that answers alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from rsrefseg.checkpoints.model_file import is_random, load_model, load_tensors
from rsrefseg.checkpoints.upstream_layout import guess_config, plain_checkpoint, published_name
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import ModelConfig, model_config
from rsrefseg.model.model import RSRefSeg, build_model
from rsrefseg.model.tokenizer import write_word_tokenizer
from rsrefseg.runs.base import BaseWeights, from_file
from rsrefseg.runs.convert import ConvertReport, ConvertRequest, convert_checkpoint
from rsrefseg.runs.imported_run import made_scenes, make_random_run
from rsrefseg.runs.reference_inputs import load_reference_inputs
from rsrefseg.runs.run import Run
from tests.support.upstream import PHRASES, PublicRSRefSeg, brought_config

CONFIG = brought_config()
TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order, folded adapters among them
ADAPTERS = 19  # 2 towers x 4 projections + the text head + 2 SAM blocks x 4 linears + 2 neck convolutions

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def public() -> PublicRSRefSeg:
    return PublicRSRefSeg(CONFIG)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "words" / "tokenizer.json"
    path.parent.mkdir()
    phrases = [referral.phrase for scene in made_scenes() for referral in scene.referrals]
    write_word_tokenizer(path, [*PHRASES * 100, *phrases], CONFIG.siglip.vocab_size)
    return path


def convert(file: Path, tokenizer: Path, out: Path | None = None, **options: Any) -> ConvertReport:
    request = ConvertRequest(file, out or file.parent / "run", CONFIG, tokenizer)
    return convert_checkpoint(replace(request, **options))


def assert_alike(public: PublicRSRefSeg, run: Run) -> None:
    """On pictures of noise, every phrase asked alone there and all at once here."""
    model = load_model(run.merged_path)
    words = Tokenizer(run.tokenizer_path, CONFIG.siglip.text_length, "longest", CONFIG.siglip.pad_token_id)
    tokens = words.encode(PHRASES)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image in images:
        with torch.no_grad():
            given = (torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.token_mask))
            found = model(image[None], *given).mask_logits[:, 0]
        for index, mask in enumerate(tokens.token_mask):
            expected = public(image, torch.from_numpy(tokens.input_ids[index][mask]))
            scale = expected.abs().max()
            assert expected.std() > 1e-2 * scale, "a flat map would prove nothing"
            assert (found[index] - expected).abs().max() <= TOLERANCE * scale
    assert (found[0] - found[1]).abs().max() > 1e-2 * found.abs().max(), "phrases must matter"


@pytest.mark.parametrize("wrapping", [None, "module", "state_dict", "model_state_dict"])
def test_a_public_checkpoint_answers_alike_after_conversion(
    public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path, wrapping: str | None
) -> None:
    state = public.state_dict()
    torch.save({wrapping: state, "epoch": 12} if wrapping else state, tmp_path / "public.pth")
    report = convert(tmp_path / "public.pth", tokenizer)
    assert report.adapters == ADAPTERS
    assert_alike(public, Run(Path(report.run)))


def test_the_public_names_are_those_that_are_told_of_it(public: PublicRSRefSeg) -> None:
    """The layout of the test's model is the one that public checkpoints are said to have."""
    names = set(public.state_dict())
    for name in (
        "backbone.base_model.model.model.layers.0.attn.qkv.base_layer.weight",
        "backbone.base_model.model.model.layers.1.attn.qkv.lora_A.default.weight",
        "backbone.base_model.model.model.neck.conv2.lora_B.default.weight",
        "backbone.base_model.model.shared_image_embedding.positional_embedding",
        "clip_vision_encoder.base_model.model.model.encoder.layers.0.self_attn.q_proj.base_layer.weight",
        "clip_vision_encoder.base_model.model.model.head.attention.out_proj.lora_A.default.weight",
        "clip_text_encoder.base_model.model.logit_scale",
        "clip_text_encoder.base_model.model.model.head.lora_A.default.weight",
        "sam_prompt_encoder.model.mask_embed.conv1.weight",
        "sam_prompt_encoder.model.not_a_point_embed.weight",
        "sam_mask_decoder.model.iou_token.weight",
        "prompter_down_channel.bn.running_mean",
        "prompter_down_spatial.1.conv.weight",
        "prompter_down_spatial.2.conv.bias",
    ):
        assert name in names


def test_a_checkpoint_with_merged_adapters_answers_alike(tokenizer: Path, tmp_path: Path) -> None:
    merged = PublicRSRefSeg(CONFIG).merged()
    assert not any("lora" in name or "base_model" in name for name in merged.state_dict())
    save_file({name: tensor.clone() for name, tensor in merged.state_dict().items()}, tmp_path / "public.safetensors")
    report = convert(tmp_path / "public.safetensors", tokenizer)
    assert report.adapters == 0
    assert_alike(merged, Run(Path(report.run)))


def test_adapters_of_another_alpha_are_scaled(tokenizer: Path, tmp_path: Path) -> None:
    public = PublicRSRefSeg(CONFIG, rank=2, alpha=6)
    torch.save(public.state_dict(), tmp_path / "public.pth")
    assert_alike(public, Run(Path(convert(tmp_path / "public.pth", tokenizer, lora_alpha=6.0).run)))
    wrong = Run(Path(convert(tmp_path / "public.pth", tokenizer, tmp_path / "wrong").run))
    with pytest.raises(AssertionError):
        assert_alike(public, wrong)


def test_half_precision_checkpoints_are_widened(public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in public.state_dict().items()
    }
    torch.save(state, tmp_path / "public.pth")
    run = Run(Path(convert(tmp_path / "public.pth", tokenizer).run))
    assert {tensor.dtype for tensor in load_tensors(run.merged_path).tensors.values()} == {torch.float32, torch.int64}


def test_the_run_is_whole(public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path) -> None:
    torch.save(public.state_dict(), tmp_path / "public.pth")
    report = convert(tmp_path / "public.pth", tokenizer)
    run = Run(Path(report.run))
    record = run.read_record()
    config = ModelConfig.from_dict(record["model"])
    assert config.text_padding == "longest"
    assert config.sam.decoder_norm_epsilon == 1e-6, "that of the Hugging Face port"
    assert record["base"]["kind"] == "converted"
    assert record["base"]["path"] == str(tmp_path / "public.pth")
    assert run.tokenizer_path.read_bytes() == tokenizer.read_bytes()
    inputs = load_reference_inputs(run.reference_inputs_path)
    assert all(entry.image.shape == (3, 64, 64) and entry.phrases for entry in inputs)
    assert not is_random(run.merged_path)
    header = load_tensors(run.merged_path).header
    assert header["merge"]["adapters"] == ADAPTERS
    # Everything is accounted for: taken, folded, or said to be left out.
    assert all(name.startswith("clip_vision_encoder.model.head.") for name in report.dropped)
    assert report.tensors == len(load_model(run.merged_path).state_dict()) - 2  # two constants of the grids
    assert "clip_vision_encoder.model.head." in report.render()
    assert json.dumps(report.as_dict())
    assert from_file(run.merged_path).build(config, 0).state_dict().keys() == build_model(config).state_dict().keys()
    with pytest.raises(BadInputError, match="converted, not trained"):
        BaseWeights.from_dict(record["base"]).build(config, 0)


def test_reference_inputs_can_come_from_a_data_set(
    public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path, boxes: Path
) -> None:
    torch.save(public.state_dict(), tmp_path / "public.pth")
    run = Run(Path(convert(tmp_path / "public.pth", tokenizer, data=boxes).run))
    phrases = {phrase for entry in load_reference_inputs(run.reference_inputs_path) for phrase in entry.phrases}
    assert phrases
    assert all(phrase.endswith("box") for phrase in phrases)


BACKBONE, TEXT = "backbone.base_model.model.", "clip_text_encoder.base_model.model."
NECK = f"{BACKBONE}model.neck.conv2."


def without(*ends: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.endswith(ends)}


def with_one(name: str, tensor: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: tensor}


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("logit_scale"), r"misses tensor 'clip_text_encoder\.logit_scale'"),
    "surplus": (with_one("prompter_extra.weight", torch.ones(3)), r"unknown tensor 'prompter_extra\.weight'"),
    "misshapen": (with_one(f"{TEXT}logit_scale", torch.ones(2)), r"logit_scale' has shape \(2,\)"),
    "integers": (with_one(f"{TEXT}logit_scale", torch.ones(1, dtype=torch.int8)), "logit_scale' is int8"),
    "no B": (without("neck.conv2.lora_B.default.weight"), r"adapter without 'backbone\.model\.neck\.conv2\.lora_B'"),
    "no weight": (without("neck.conv2.base_layer.weight"), r"adapter without 'backbone\.model\.neck\.conv2\.weight'"),
    "wrong rank": (with_one(f"{NECK}lora_B.default.weight", torch.ones(32, 3, 1, 1)), "neck.conv2.weight' has shapes"),
    "two adapters": (with_one(f"{NECK}lora_B.other.weight", torch.ones(32, 4, 1, 1)), "two LoRA adapters"),
    "twice": (with_one("backbone.model.neck.conv1.weight", torch.ones(32, 24, 1, 1)), "twice, wrapped and plain"),
    "DoRA": (with_one(f"{NECK}lora_magnitude_vector.default.weight", torch.ones(32)), "unknown tensor .*magnitude"),
    "not finite": (with_one(f"{TEXT}logit_scale", torch.full((1,), torch.inf)), "logit_scale' holds values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path, fault: str
) -> None:
    change, message = FAULTS[fault]
    torch.save(change(dict(public.state_dict())), tmp_path / "public.pth")
    with pytest.raises(BadInputError, match=message) as refusal:
        convert(tmp_path / "public.pth", tokenizer)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_second_encoding_that_nobody_reads_is_left_out_and_said(
    public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path
) -> None:
    name = "sam_prompt_encoder.model.shared_embedding.positional_embedding"
    torch.save(public.state_dict() | {name: torch.ones(2, 16)}, tmp_path / "public.pth")
    report = convert(tmp_path / "public.pth", tokenizer)
    assert name in report.dropped
    assert_alike(public, Run(Path(report.run)))


def test_older_transformers_have_one_level_more(public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path) -> None:
    def older(name: str) -> str:
        for tower in ("vision", "text"):
            prefix = f"clip_{tower}_encoder.base_model.model.model."
            name = name.replace(prefix, f"{prefix}{tower}_model.")
        return name

    torch.save({older(name): tensor for name, tensor in public.state_dict().items()}, tmp_path / "public.pth")
    assert_alike(public, Run(Path(convert(tmp_path / "public.pth", tokenizer).run)))


def test_what_cannot_be_used_is_refused_before_the_work(
    public: PublicRSRefSeg, tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "public.pth"
    torch.save(public.state_dict(), file)
    with pytest.raises(BadInputError, match="--tokenizer"):
        convert_checkpoint(ConvertRequest(file, tmp_path / "run", CONFIG))
    with pytest.raises(BadInputError, match="neither ViT-B nor ViT-L"):
        convert(file, tokenizer, config=None)
    with pytest.raises(BadInputError, match="unknown text padding"):
        convert(file, tokenizer, text_padding="none")
    with pytest.raises(BadInputError, match="not empty"):
        convert(file, tokenizer, tokenizer.parent)
    with pytest.raises(BadInputError, match="no tokenizer in"):
        convert(file, tmp_path)
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(BadInputError, match="not an RSRefSeg checkpoint in the public layout"):
        convert(file, tokenizer, config=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["b", "l"])
def test_the_preset_shows_in_the_width_of_sam(preset: str) -> None:
    """At full size, without the memory: every name and shape of the real thing is matched too."""
    state = build_model(model_config(preset), device="meta").state_dict()
    public = {published_name(name): tensor for name, tensor in state.items()}
    checkpoint = plain_checkpoint(public, None, Path("public.pth"))
    assert guess_config(checkpoint) == model_config(preset)


def test_random_weights_are_stamped(tmp_path: Path) -> None:
    run = make_random_run(tmp_path / "run", small_with_words(), seed=5)
    assert is_random(run.merged_path)
    record = run.read_record()
    base = BaseWeights.from_dict(record["base"])
    assert base.random_weights
    model: RSRefSeg = load_model(run.merged_path)
    expected = build_model(small_with_words(), seed=5).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    # The stamp follows the weights into whatever is trained on them.
    assert from_file(run.merged_path).random_weights
    assert BaseWeights.from_dict(from_file(run.merged_path).to_dict()).random_weights


def small_with_words() -> ModelConfig:
    """With room for the words of the rendered scenes."""
    return replace(CONFIG, siglip=replace(CONFIG.siglip, vocab_size=200, text_length=24))
