"""The public checkpoint at full size, from an independent rebuild with random weights to masks of ONNX Runtime."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import Preset, model_config
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.aerial_d import AerialD
from tests.support.measured import Measured, measured, size_of
from tests.support.towers import SO400M, write_siglip2_of
from tests.support.upstream import port_sam

pytestmark = pytest.mark.full_size

SCENE = rendered_scenes()[0]
PHRASES = [SCENE.referrals[0].phrase, "Ship"]
TOLERANCE = 1e-4  # of the largest logit
EXPORT_GB = 12


class Converted(NamedTuple):
    """The rebuild's mask logits (P, 256, 256), the folder of the run, and the commands."""

    wanted: np.ndarray
    folder: Path
    converting: Measured
    exporting: Measured


@pytest.fixture(scope="module")
def converted() -> Iterator[Converted]:
    with tempfile.TemporaryDirectory(prefix="rsrefseg-public-") as name:
        folder = Path(name)
        wanted = write_checkpoint(folder)
        bases = ("--sam", "sam", "--siglip", "siglip2")
        converting = measured(folder, "convert", "public.pt", *bases, "--out", "run")
        yield Converted(wanted, folder, converting, measured(folder, "export", "run", "--out", "bundle"))


def write_checkpoint(folder: Path) -> np.ndarray:
    """Write bases and checkpoint; return the logits of the rebuild, which is freed."""
    sam = port_sam(model_config(Preset.B))
    sam.save_pretrained(folder / "sam")
    model = AerialD(sam, write_siglip2_of(folder / "siglip2", SO400M, depth=27, vocab_size=256_000), rank=16)
    model.save(folder / "public.pt")
    tokens = Tokenizer(folder / "siglip2" / "tokenizer.json", 64, "longest", 0).encode(PHRASES)
    rows = zip(torch.from_numpy(tokens.input_ids), tokens.token_mask.sum(axis=1), strict=True)
    return np.stack([model(SCENE.image, row[:length]).numpy() for row, length in rows])


def test_masks_are_those_of_the_rebuild(converted: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    assert converted.converting.document["profile"] == "aerial-d"
    with Segmenter.open(converted.folder / "bundle", "onnxruntime") as segmenter:
        found = np.stack([one.mask_logits for one in segmenter.segment(SCENE.image, PHRASES)])
    scale = np.abs(converted.wanted).max()
    error = np.abs(found - converted.wanted).max() / scale
    with capsys.disabled():
        exporting, size = converted.exporting, size_of(converted.folder / "bundle")
        print(
            f"\n    public: mask logits {error:.1e} of {scale:.2f}, convert {converted.converting.wall_s:.0f} s, "
            f"{converted.converting.peak_gib:.2f} GiB, export {exporting.wall_s:.0f} s, {exporting.peak_gib:.2f} GiB, "
            f"bundle {size / 1e9:.2f} GB",
            flush=True,
        )
    assert converted.wanted.std() > 1e-3
    assert error <= TOLERANCE
    assert converted.exporting.peak_gib * 2**30 <= EXPORT_GB * 1e9
