"""RSRefSeg 2 at full size, from an independent rebuild with random weights to masks of ONNX Runtime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.model.config import model_config
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.full_size import TOLERANCE, Converted, Logits, converted, token_ids
from tests.support.measured import measured, size_of
from tests.support.upstream2 import PublicRSRefSeg2, write_public2

pytestmark = pytest.mark.full_size

SCENE = rendered_scenes()[0]
IMAGES = {"square": SCENE.image, "wide": SCENE.image[:160]}
PHRASES = [referral.phrase for referral in SCENE.referrals[:2]]
EXPORT_GB, INFER_GB, BUNDLE_FP16_GB = 14, 8, 3.0


@pytest.fixture(scope="module")
def public() -> Iterator[Converted]:
    with converted(write_checkpoint, "public.pth", "--siglip", "siglip") as made:
        yield made


def write_checkpoint(folder: Path) -> Logits:
    """Write a checkpoint and its tokenizer; return the logits of the rebuild."""
    model = PublicRSRefSeg2(model_config("rsrefseg2"))
    write_public2(folder, model, padding=True)
    rows = token_ids(folder / "siglip" / "tokenizer.json", PHRASES)
    return {name: np.stack([model(image, row).numpy() for row in rows]) for name, image in IMAGES.items()}


def test_masks_are_those_of_the_rebuild(public: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    errors = public.errors(IMAGES, PHRASES)
    with capsys.disabled():
        print(f"\n    rsrefseg2: {public.summary()}, mask logits {errors} of the maximum", flush=True)
    assert max(errors.values()) <= TOLERANCE
    assert public.exporting.peak_gib * 2**30 <= EXPORT_GB * 1e9


def test_infer_on_onnx_runtime_answers_each_phrase(public: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    found = public.infer(SCENE.image, PHRASES)
    with capsys.disabled():
        print(f"\n    rsrefseg2: infer, cold: {found.wall_s:.0f} s, {found.peak_gib:.2f} GiB", flush=True)
    assert len(found.document["results"]) == len(PHRASES)
    assert found.peak_gib * 2**30 <= INFER_GB * 1e9


def test_the_bundle_in_half_precision_is_small(public: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    exporting = measured(public.folder, "export", "run", "--fp16", "--no-check", "--out", "half")
    size = size_of(public.folder / "half")
    with capsys.disabled():
        print(f"\n    rsrefseg2: fp16 {size / 1e9:.2f} GB, {exporting.wall_s:.0f} s, {exporting.peak_gib:.2f} GiB")
    assert size <= BUNDLE_FP16_GB * 1e9
