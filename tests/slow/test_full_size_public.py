"""The public checkpoint at full size, from an independent rebuild with random weights to masks of ONNX Runtime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.model.config import Preset, model_config
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.aerial_d import AerialD
from tests.support.full_size import TOLERANCE, Converted, Logits, converted, token_ids
from tests.support.towers import SO400M, write_siglip2_of
from tests.support.upstream import port_sam

pytestmark = pytest.mark.full_size

SCENE = rendered_scenes()[0]
IMAGES = {"square": SCENE.image}
PHRASES = [SCENE.referrals[0].phrase, "Ship"]
EXPORT_GB = 12


@pytest.fixture(scope="module")
def public() -> Iterator[Converted]:
    with converted(write_checkpoint, "public.pt", "--sam", "sam", "--siglip", "siglip2") as made:
        yield made


def write_checkpoint(folder: Path) -> Logits:
    """Write bases and checkpoint; return the logits of the rebuild."""
    sam = port_sam(model_config(Preset.B))
    sam.save_pretrained(folder / "sam")
    model = AerialD(sam, write_siglip2_of(folder / "siglip2", SO400M, depth=27, vocab_size=256_000), rank=16)
    model.save(folder / "public.pt")
    rows = token_ids(folder / "siglip2" / "tokenizer.json", PHRASES)
    return {name: np.stack([model(image, row).numpy() for row in rows]) for name, image in IMAGES.items()}


def test_masks_are_those_of_the_rebuild(public: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    assert public.converting.document["profile"] == "aerial-d"
    errors = public.errors(IMAGES, PHRASES)
    with capsys.disabled():
        print(f"\n    public: {public.summary()}, mask logits {errors} of the maximum", flush=True)
    assert max(errors.values()) <= TOLERANCE
    assert public.exporting.peak_gib * 2**30 <= EXPORT_GB * 1e9


def test_infer_on_onnx_runtime_answers_each_phrase(public: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    found = public.infer(SCENE.image, PHRASES)
    with capsys.disabled():
        print(f"\n    public: infer, cold: {found.wall_s:.0f} s, {found.peak_gib:.2f} GiB", flush=True)
    assert len(found.document["results"]) == len(PHRASES)
