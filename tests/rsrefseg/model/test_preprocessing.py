"""Preprocessing is data of the model: training, PyTorch, export and engines do what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from torch.nn import functional as F

from rsrefseg.checkpoints.model_file import load_model
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.text import Tokenizer
from rsrefseg.evaluation.evaluate import predict_with
from rsrefseg.export.export import export_run
from rsrefseg.export.settings import ExportSettings
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.model import build_model
from rsrefseg.model.preprocessing import PROFILES, Preprocessing, choose_preprocessing
from rsrefseg.runs.imported_run import make_random_run, rendered_scenes
from rsrefseg.train.settings import resolve_settings
from tests.support.small import small_config

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def aerial(image_size: int = 80) -> ModelConfig:
    siglip = replace(small_config().siglip, vocab_size=200, text_length=24)
    return small_config(siglip=siglip, preprocessing=replace(PROFILES["aerial-d"], image_size=image_size))


@torch.no_grad()
def test_aerial_d_is_what_its_training_code_does() -> None:
    """Pillow to a square, [0, 1] stretched for SAM, ImageNet's normalisation for SigLIP."""
    config = aerial()
    model, image = build_model(config), rendered_scenes()[0].image
    square = Image.fromarray(image).resize((80, 80), Image.Resampling.BILINEAR)
    assert np.array_equal(config.stretch(image), np.asarray(square).transpose(2, 0, 1))
    unit = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None] / 255.0
    seen: dict[str, torch.Tensor] = {}
    first = {"sam": model.sam_encoder.image_encoder.patch_embed, "siglip": model.siglip_vision.embeddings}
    for name, module in first.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    model.encode_image(torch.from_numpy(config.stretch(image))[None])
    sam = F.interpolate(unit, (64, 64), mode="bilinear", align_corners=False).clamp(0, 1)
    siglip = F.interpolate((unit - MEAN) / STD, (64, 64), mode="bilinear", align_corners=False)
    assert (seen["sam"] - sam).abs().max() < 1e-6
    assert (seen["siglip"] - siglip).abs().max() < 1e-5


@pytest.mark.parametrize("fp16", [False, True])
def test_a_bundle_keeps_its_preprocessing(tmp_path: Path, fp16: bool) -> None:
    run = make_random_run(tmp_path / "run", aerial())
    export_run(run.path, tmp_path / "bundle", ExportSettings(plan={} if fp16 else None))
    stated = Bundle.open(tmp_path / "bundle").manifest.preprocessing
    assert (stated.profile, stated.resize) == ("own", "pillow")
    assert (stated.image_size, stated.siglip_size, stated.sam_size) == (80, 64, 64)
    assert (stated.sam_mean, stated.sam_std) == ((0, 0, 0), (1, 1, 1))
    scene = rendered_scenes()[0]
    phrases = [referral.phrase for referral in scene.referrals][:2]
    torch_model = predict_with(load_model(run.merged_path), Tokenizer(run.tokenizer_path, 24, "fixed", 1))
    wanted = torch_model(scene.image, phrases)
    with Segmenter.open(tmp_path / "bundle", "onnxruntime") as segmenter:
        found = segmenter.segment(scene.image, phrases)
    for one, two in zip(found, wanted, strict=True):
        scale = np.abs(two.full_size_logits()).max()
        error = np.abs(one.full_size_logits() - two.full_size_logits()).max()
        assert error <= (2e-2 if fp16 else 1e-4) * scale


def test_files_made_before_are_published(tmp_path: Path) -> None:
    document = small_config().to_dict()
    del document["preprocessing"]
    assert ModelConfig.from_dict(document) == small_config()
    assert small_config().preprocessing.profile == "published"


def test_own_values_stand_in_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[preprocessing]\nprofile = 'aerial-d'\nimage_size = 512\nsam_std = [1, 1, 0.5]\n")
    own = resolve_settings(str(path), {}).preprocessing.of(Preprocessing())
    assert own == replace(PROFILES["aerial-d"], image_size=512, sam_std=(1.0, 1.0, 0.5))
    assert own.profile == "own"
    assert choose_preprocessing(own, None) == own
    for line in ("profile = 'x'", "sam_std = [1, 1, 0]", "image_size = 0", "resize = 'x'"):
        path.write_text(f"[preprocessing]\n{line}\n")
        with pytest.raises(BadInputError):
            resolve_settings(str(path), {})
