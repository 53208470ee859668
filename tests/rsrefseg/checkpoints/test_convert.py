"""A public RSRefSeg, rebuilt from transformers and peft, converts to a run with equal predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from rsrefseg.checkpoints.model_file import is_random, load_model, load_tensors
from rsrefseg.checkpoints.upstream_layout import guess_config, plain_checkpoint, published_name
from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import ModelConfig, model_config
from rsrefseg.model.model import build_model
from rsrefseg.runs import imported_run
from rsrefseg.runs.base import BaseWeights, from_file
from rsrefseg.runs.convert import ConvertReport, convert_checkpoint
from rsrefseg.runs.imported_run import make_random_run, rendered_scenes
from rsrefseg.runs.reference_inputs import load_reference_inputs
from rsrefseg.runs.run import Run
from tests.support.upstream import PHRASES, PublicRSRefSeg, State, brought_config, with_one, without
from tests.support.words import write_word_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = brought_config()
TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order, folded adapters among them
ADAPTERS = 19  # 2 towers x 4 projections + the text head + 2 SAM blocks x 4 linears + 2 neck convolutions


@pytest.fixture(scope="module")
def public() -> PublicRSRefSeg:
    return PublicRSRefSeg(CONFIG)


@pytest.fixture
def file(public: PublicRSRefSeg, tmp_path: Path) -> Path:
    """Return a copy of a public checkpoint."""
    torch.save(public.state_dict(), tmp_path / "public.pth")
    return tmp_path / "public.pth"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "words" / "tokenizer.json"
    path.parent.mkdir()
    phrases = [referral.phrase for scene in rendered_scenes() for referral in scene.referrals]
    write_word_tokenizer(path, [*PHRASES * 100, *phrases], CONFIG.siglip.vocab_size)
    return path


def convert(file: Path, words: Path, **options: Any) -> ConvertReport:
    return convert_checkpoint(file, **{"out": file.parent / "run", "config": CONFIG, "tokenizer": words} | options)


def assert_alike(public: PublicRSRefSeg, run: Run) -> None:
    """On noise images; the public model gets one phrase per call, the converted one all phrases."""
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


BACKBONE, TEXT = "backbone.base_model.model.", "clip_text_encoder.base_model.model."
NECK = f"{BACKBONE}model.neck.conv2."
ENCODING = "sam_prompt_encoder.model.shared_embedding.positional_embedding"


def older(state: State) -> State:
    """Older releases of transformers have an additional level in both SigLIP towers."""
    for tower in ("vision", "text"):
        prefix = f"clip_{tower}_encoder.base_model.model.model."
        state = {name.replace(prefix, f"{prefix}{tower}_model."): tensor for name, tensor in state.items()}
    return state


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "wrapped": lambda state: {"module": state, "epoch": 12},
    "a second encoding that nobody reads": lambda state: state | {ENCODING: torch.ones(2, 16)},
    "older transformers": older,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_checkpoint_predicts_the_same(
    public: PublicRSRefSeg, file: Path, tokenizer: Path, layout: str
) -> None:
    torch.save(LAYOUTS[layout](public.state_dict()), file)
    report = convert(file, tokenizer)
    assert report.adapters == ADAPTERS
    assert (ENCODING in report.dropped) == (layout == "a second encoding that nobody reads")
    assert_alike(public, Run(Path(report.run)))


def test_a_checkpoint_without_a_tokenizer_is_refused(file: Path) -> None:
    with pytest.raises(BadInputError, match="no tokenizer: give the one of its SigLIP with --tokenizer"):
        convert_checkpoint(file, file.parent / "run", CONFIG)
    assert not (file.parent / "run").exists()


def test_the_public_model_of_the_tests_has_the_published_names(public: PublicRSRefSeg) -> None:
    vision = "clip_vision_encoder.base_model.model."
    assert public.state_dict().keys() >= {
        f"{BACKBONE}model.layers.0.attn.qkv.base_layer.weight",
        f"{BACKBONE}model.layers.1.attn.qkv.lora_A.default.weight",
        f"{BACKBONE}model.neck.conv2.lora_B.default.weight",
        f"{BACKBONE}shared_image_embedding.positional_embedding",
        f"{vision}model.encoder.layers.0.self_attn.q_proj.base_layer.weight",
        f"{vision}model.head.attention.out_proj.lora_A.default.weight",
        f"{TEXT}logit_scale",
        f"{TEXT}model.head.lora_A.default.weight",
        "sam_prompt_encoder.model.mask_embed.conv1.weight",
        "sam_prompt_encoder.model.not_a_point_embed.weight",
        "sam_mask_decoder.model.iou_token.weight",
        "prompter_down_channel.bn.running_mean",
        "prompter_down_spatial.1.conv.weight",
        "prompter_down_spatial.2.conv.bias",
    }


def test_a_checkpoint_with_merged_adapters_predicts_the_same(tokenizer: Path, tmp_path: Path) -> None:
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
    wrong = Run(Path(convert(tmp_path / "public.pth", tokenizer, out=tmp_path / "wrong").run))
    with pytest.raises(AssertionError):
        assert_alike(public, wrong)


def test_half_precision_checkpoints_are_widened(file: Path, tokenizer: Path) -> None:
    torch.save(PublicRSRefSeg(CONFIG).half().state_dict(), file)
    run = Run(Path(convert(file, tokenizer).run))
    assert {tensor.dtype for tensor in load_tensors(run.merged_path).tensors.values()} == {torch.float32, torch.int64}


def test_the_run_is_whole(file: Path, tokenizer: Path) -> None:
    report = convert(file, tokenizer)
    run = Run(Path(report.run))
    record = run.read_record()
    config = ModelConfig.from_dict(record["model"])
    assert config.text_padding == "longest"
    assert config.sam.decoder_norm_epsilon == 1e-6, "that of the Hugging Face port"
    assert (record["base"]["kind"], record["base"]["path"]) == ("converted", str(file))
    assert run.tokenizer_path.read_bytes() == tokenizer.read_bytes()
    inputs = load_reference_inputs(run.reference_inputs_path)
    assert all(entry.image.shape == (3, 64, 64) and entry.phrases for entry in inputs)
    assert not is_random(run.merged_path)
    assert load_tensors(run.merged_path).header["merge"]["adapters"] == ADAPTERS
    # Everything is accounted for: taken, folded, or left out by name.
    assert all(name.startswith("clip_vision_encoder.model.head.") for name in report.dropped)
    assert report.tensors == len(load_model(run.merged_path).state_dict()) - 2  # two constants of the grids
    with pytest.raises(BadInputError, match="converted, not trained"):
        BaseWeights.from_dict(record["base"]).build(config, 0)


def test_reference_inputs_can_come_from_a_data_set(file: Path, tokenizer: Path, boxes: Path) -> None:
    run = Run(Path(convert(file, tokenizer, data=boxes).run))
    phrases = {phrase for entry in load_reference_inputs(run.reference_inputs_path) for phrase in entry.phrases}
    assert phrases
    assert all(phrase.endswith("box") for phrase in phrases)


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        without("text_encoder.base_model.model.logit_scale"),
        r"misses tensor 'clip_text_encoder\.logit_scale'",
    ),
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
def test_a_checkpoint_that_does_not_fit_is_refused(file: Path, tokenizer: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    torch.save(change(torch.load(file)), file)
    with pytest.raises(BadInputError, match=message):
        convert(file, tokenizer)
    assert not file.with_name("run").exists()


def test_what_cannot_be_used_is_refused_before_the_work(file: Path, tokenizer: Path, tmp_path: Path) -> None:
    for message, options in (
        ("--tokenizer", {"tokenizer": None}),
        ("no tokenizer in", {"tokenizer": tmp_path}),
        ("which no preset has", {"config": None}),
        ("unknown text padding", {"text_padding": "none"}),
        ("not empty", {"out": tokenizer.parent}),
    ):
        with pytest.raises(BadInputError, match=message):
            convert(file, tokenizer, **options)
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(BadInputError, match="not an RSRefSeg checkpoint in the public layout"):
        convert(file, tokenizer, config=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["b", "l"])
def test_the_preset_shows_in_the_width_of_sam(preset: str) -> None:
    """At full size on the meta device, every name and shape matches too."""
    state = build_model(model_config(preset), device="meta").state_dict()
    public = {published_name(name): tensor for name, tensor in state.items()}
    checkpoint = plain_checkpoint(public, None, Path("public.pth"))
    assert guess_config(checkpoint) == model_config(preset)


def test_random_weights_are_stamped_and_so_is_what_is_trained_on_them(tmp_path: Path) -> None:
    config = replace(CONFIG, siglip=replace(CONFIG.siglip, vocab_size=200, text_length=24))  # words of the scenes
    run = make_random_run(tmp_path / "run", config, seed=5)
    assert is_random(run.merged_path)
    assert BaseWeights.from_dict(run.read_record()["base"]).random_weights
    assert BaseWeights.from_dict(from_file(run.merged_path).to_dict()).random_weights
    found, expected = load_model(run.merged_path).state_dict(), build_model(config, seed=5).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    full = patch.object(imported_run, "save_model", side_effect=RSRefSegError("the disk is full"))
    with full, pytest.raises(RSRefSegError):
        make_random_run(tmp_path / "run", CONFIG)
    assert list(tmp_path.iterdir()) == []
