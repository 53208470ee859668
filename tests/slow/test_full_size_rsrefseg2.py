"""RSRefSeg 2 at full size, from an independent rebuild with random weights to masks of ONNX Runtime."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import model_config
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.measured import Measured, measured, size_of
from tests.support.upstream2 import PublicRSRefSeg2, write_public2

pytestmark = pytest.mark.full_size

SCENE = rendered_scenes()[0]
IMAGES = {"square": SCENE.image, "wide": SCENE.image[:160]}
PHRASES = [referral.phrase for referral in SCENE.referrals[:2]]
TOLERANCE = 1e-4  # of the largest logit
EXPORT_GB, BUNDLE_FP16_GB = 14, 3.0


class Converted(NamedTuple):
    """The rebuild's mask logits (P, 256, 256) by image, the folder of the run, and the commands."""

    wanted: dict[str, np.ndarray]
    folder: Path
    converting: Measured
    exporting: Measured


@pytest.fixture(scope="module")
def converted() -> Iterator[Converted]:
    with tempfile.TemporaryDirectory(prefix="rsrefseg2-") as name:
        folder = Path(name)
        wanted = write_checkpoint(folder)
        converting = measured(folder, "convert", "public.pth", "--siglip", "siglip", "--out", "run")
        (folder / "public.pth").unlink()
        yield Converted(wanted, folder, converting, measured(folder, "export", "run", "--out", "bundle"))


def write_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Write a checkpoint and its tokenizer; return the logits of the rebuild, which is freed."""
    model = PublicRSRefSeg2(model_config("rsrefseg2"))
    write_public2(folder, model, padding=True)
    tokens = Tokenizer(folder / "siglip" / "tokenizer.json", 64, "longest", 0).encode(PHRASES)
    rows = [torch.from_numpy(ids[mask]) for ids, mask in zip(tokens.input_ids, tokens.token_mask, strict=True)]
    return {name: np.stack([model(image, row).numpy() for row in rows]) for name, image in IMAGES.items()}


def test_masks_are_those_of_the_rebuild(converted: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {}
    with Segmenter.open(converted.folder / "bundle", "onnxruntime") as segmenter:
        for name, image in IMAGES.items():
            found = np.stack([one.mask_logits for one in segmenter.segment(image, PHRASES)])
            errors[name] = np.abs(found - converted.wanted[name]).max() / np.abs(converted.wanted[name]).max()
    with capsys.disabled():
        size = size_of(converted.folder / "bundle")
        for what, one in (("convert", converted.converting), ("export", converted.exporting)):
            print(f"\n    rsrefseg2: {what} {one.wall_s:.0f} s, {one.peak_gib:.2f} GiB", end="")
        print(f"\n    rsrefseg2: bundle {size / 1e9:.2f} GB, mask logits {errors} of the maximum", flush=True)
    assert max(errors.values()) <= TOLERANCE
    assert converted.exporting.peak_gib * 2**30 <= EXPORT_GB * 1e9


def test_the_bundle_in_half_precision_is_small(converted: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    exporting = measured(converted.folder, "export", "run", "--fp16", "--no-check", "--out", "half")
    size = size_of(converted.folder / "half")
    with capsys.disabled():
        print(f"\n    rsrefseg2: fp16 {size / 1e9:.2f} GB, {exporting.wall_s:.0f} s, {exporting.peak_gib:.2f} GiB")
    assert size <= BUNDLE_FP16_GB * 1e9
