"""A public RSRefSeg 2, rebuilt from transformers and peft, converts to a run with equal predictions."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsrefseg.checkpoints.model_file import load_model, load_tensors
from rsrefseg.checkpoints.tokenizer_file import tokenizer_bytes
from rsrefseg.engines.errors import BadInputError
from rsrefseg.model.config import ModelConfig, model_config
from rsrefseg.model.model import build_model
from rsrefseg.runs.convert import ConvertReport, convert_checkpoint
from rsrefseg.runs.run import Run
from tests.support.upstream import State, with_one, without
from tests.support.upstream2 import PublicRSRefSeg2, small_config2, write_public2

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = small_config2()
TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order, folded adapters among them
ADAPTERS = 25  # 2 towers x 4 projections + the text head + 6 blocks x 2 linears + 4 neck convolutions
LORA_A = "backbone.model.image_encoder.base_model.model.trunk.blocks.4.attn.qkv.lora_A.default.weight"


@pytest.fixture(scope="module")
def public() -> PublicRSRefSeg2:
    return PublicRSRefSeg2(CONFIG)


@pytest.fixture
def file(public: PublicRSRefSeg2, tmp_path: Path) -> Path:
    return write_public2(tmp_path, public)


def convert(file: Path, **options: Any) -> ConvertReport:
    siglip = file.parent / "siglip"
    return convert_checkpoint(file, **{"out": file.parent / "run", "config": CONFIG, "siglip": siglip} | options)


def test_the_rebuild_has_the_published_keys_and_shapes_at_full_size() -> None:
    with torch.device("meta"):
        state = PublicRSRefSeg2(model_config("rsrefseg2")).published_state()
    counts = Counter(name.partition(".")[0] for name in state)
    assert counts == {
        "backbone": 943,
        "clip_vision_encoder": 670,
        "clip_text_encoder": 658,
        "prompter": 374,
        "decode_head": 4,
    }
    listed = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(state.items()))
    published = "4fa907a9c1c0615e8426372e0e4a106b23fa7cc0150891b0b44477abe1e18b26"
    assert hashlib.sha256(listed.encode()).hexdigest() == published


def test_the_full_size_has_the_published_parameters() -> None:
    model = build_model(model_config("rsrefseg2"), device="meta")
    sizes = {name: sum(tensor.numel() for tensor in part.parameters()) for name, part in model.named_children()}
    assert sizes["attn_prompter"] == 82_773_312 + 2, "the prompter, SigLIP's scale and bias"
    assert sum(sizes.values()) == 1_420_883_682


def test_a_converted_checkpoint_predicts_the_same(public: PublicRSRefSeg2, file: Path) -> None:
    report = convert(file)
    assert report.adapters == ADAPTERS
    assert len(report.dropped) == 4 + 6 + 17, "training scalars, object score, pooled image feature and its adapters"
    accounted = report.tensors + len(report.dropped) + 2 * ADAPTERS
    assert accounted == len(public.published_state())
    model = load_model(Run(Path(report.run)).merged_path)
    fell_back = set()
    for shape in ((60, 60, 3), (40, 60, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        for count in (1, 7, 64):
            ids, mask = torch.ones(1, 64, dtype=torch.int64), torch.arange(64)[None] < count
            ids[0, :count] = torch.arange(2, 2 + count)
            expected = public(image, ids[0, :count])
            with torch.no_grad():
                found = model(torch.from_numpy(CONFIG.stretch(image))[None], ids, mask).mask_logits[0, 0]
            scale = expected.abs().max()
            assert expected.std() > 1e-2 * scale, "a flat map would prove nothing"
            assert (found - expected).abs().max() <= TOLERANCE * scale
            fell_back.add(public.fell_back)
    assert fell_back == {False, True}, "both ways to choose a mask must occur"


def test_bfloat16_is_widened(public: PublicRSRefSeg2, file: Path) -> None:
    state = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in public.published_state().items()
    }
    torch.save({"state_dict": state}, file)
    tensors = load_tensors(Run(Path(convert(file).run)).merged_path).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("prompter.img_pe"), r"misses tensor 'prompter\.img_pe'"),
    "surplus": (with_one("backbone.model.memory_encoder.weight", torch.ones(3)), "unknown tensor .*memory_encoder"),
    "misshapen": (with_one("prompter.prompt_embedding", torch.ones(8, 32)), r"prompt_embedding' has shape \(8, 32\)"),
    "half an adapter": (without(LORA_A), r"adapter without .*blocks\.4\.attn\.qkv\.lora_A"),
    "no adapter in one block": (without("trunk.blocks.4.attn.qkv.lora"), r"no LoRA adapter for .*blocks\.4\.attn\.qkv"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused(file: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    torch.save(change(torch.load(file)["state_dict"]), file)
    with pytest.raises(BadInputError, match=message):
        convert(file)
    assert not file.with_name("run").exists()


class Message:
    """An object as training frameworks add it to their checkpoints."""


def test_objects_beside_the_weights_are_refused_unread(public: PublicRSRefSeg2, file: Path) -> None:
    torch.save({"state_dict": public.published_state(), "message_hub": Message()}, file)
    with pytest.raises(BadInputError, match=r"Message'\) besides tensors: refused; save its state dict alone"):
        convert(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"siglip": None}, "--siglip"),
        ({"config": model_config("b")}, "preset 'b' is not"),
        ({"sam": Path("sam.pth")}, "leave out --sam"),
        ({"profile": "published"}, "--profile"),
        ({"text_padding": "fixed"}, "--text-padding"),
        ({"config": None}, "has shape|misses"),
    ],
)
def test_what_cannot_be_used_is_refused(file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        convert(file, **options)
    assert not file.with_name("run").exists()


def test_the_tokenizer_keeps_the_case_as_written(file: Path) -> None:
    """RSRefSeg 2 was trained before transformers lower-cased the text of SigLIP 2."""
    siglip = file.parent / "siglip"
    (siglip / "tokenizer_config.json").write_text('{"tokenizer_class": "Siglip2Tokenizer"}')
    assert tokenizer_bytes(siglip, CONFIG) == (siglip / "tokenizer.json").read_bytes()


def test_a_configuration_survives_its_file() -> None:
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert CONFIG.architecture == "rsrefseg2"
    older = model_config("tiny").to_dict()
    del older["rsrefseg2"], older["preprocessing"]["keep_aspect"]
    assert ModelConfig.from_dict(older) == model_config("tiny")


@pytest.mark.parametrize(
    "change", [{"blocks": (1, 1, 2, 1)}, {"windows": (3, 2, 4, 2)}, {"prompter_heads": 3}], ids=str
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    value = CONFIG.to_dict()
    value["rsrefseg2"] |= change
    with pytest.raises(BadInputError):
        ModelConfig.from_dict(value)
