"""Presets s, b and l with random weights: `make test-full`, 20 GB of disk, 25 minutes of two idle server cores."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from rsrefseg.engines.bundle.contracts import Stage
from tests.support.measured import Measured, measured, size_of

pytestmark = pytest.mark.full_size

Say = Callable[[str], None]
# Of the published arithmetic; SAM's encoder less the projections of the tokens that pad its windows (3.2% and 4.5%).
GFLOP = {
    "s": {Stage.SAM_ENCODER: 972 * 0.968},
    "b": {Stage.SIGLIP_VISION: 666, Stage.SIGLIP_TEXT: 53, Stage.SAM_ENCODER: 972 * 0.968, Stage.SAM_DECODER: 4.4},
    "l": {Stage.SIGLIP_VISION: 666, Stage.SIGLIP_TEXT: 53, Stage.SAM_ENCODER: 2986 * 0.955, Stage.SAM_DECODER: 4.4},
}
EXPORT_S = {"s": 300, "b": 300, "l": 600}
EXPORT_GIB, INFER_GIB = {"s": 6, "b": 10, "l": 14}, {"s": 2.5, "b": 12, "l": 14}


class Full(NamedTuple):
    """A preset with its run and bundle on disk."""

    preset: str
    folder: Path
    exporting: Measured


@pytest.fixture
def say(full: Full, capsys: pytest.CaptureFixture[str]) -> Say:
    """Print measurements to the terminal, even if pytest captures output."""

    def print_to_terminal(text: str) -> None:
        with capsys.disabled():
            print(f"\n    -{full.preset} {text}", flush=True)

    return print_to_terminal


@pytest.fixture(scope="module", params=list(GFLOP))
def full(request: pytest.FixtureRequest) -> Iterator[Full]:
    """Create a run of random weights and its bundle with one command; removed after its tests."""
    with tempfile.TemporaryDirectory(prefix="rsrefseg-full-") as name:
        folder = Path(name)
        exporting = measured(folder, "export", "run", "--random-weights", request.param, "--out", "bundle")
        yield Full(request.param, folder, exporting)


def size_without_reference(bundle: Path) -> int:
    """Return the bytes that depend on preset and precision: the reference is FP32 and of one size in all of them."""
    return size_of(bundle) - (bundle / "reference.safetensors").stat().st_size


def test_export_stays_within_its_time_and_memory(full: Full, say: Say) -> None:
    found = full.exporting
    say(f"export: {found.wall_s:.0f} s, peak {found.peak_gib:.2f} GiB, weights made and checked")
    assert found.wall_s <= EXPORT_S[full.preset]
    assert found.peak_gib <= EXPORT_GIB[full.preset]


def test_the_bundle_is_as_large_as_the_weights(full: Full, say: Say) -> None:
    bundle = full.folder / "bundle"
    more = size_without_reference(bundle) / (full.folder / "run" / "merged.safetensors").stat().st_size - 1
    say(f"bundle: {size_of(bundle) / 1e9:.3f} GB, without its reference {more:+.1%} of its weights")
    assert abs(more) <= 0.02


def test_operations_counted_from_the_graphs_are_the_published_ones(full: Full) -> None:
    manifest = json.loads((full.folder / "bundle" / "bundle.json").read_text())
    for stage, gflop in GFLOP[full.preset].items():
        assert manifest["stages"][stage]["flops"] / 1e9 == pytest.approx(gflop, rel=0.02)


def test_every_stage_and_the_whole_equal_pytorch(full: Full, say: Say) -> None:
    found = measured(full.folder, "parity", "--bundle", "bundle")
    report = found.document
    assert report["holds"]
    assert {row["stage"] for row in report["tensors"]} == {stage.value for stage in Stage}
    worst = max(row["share_of_max"] for row in report["tensors"])
    logits = report["masks"]["share_of_max"]
    say(f"parity: worst stage {worst:.1e} of its maximum, mask logits {logits:.1e}, {found.wall_s:.0f} s")
    assert worst <= 1e-4
    assert logits <= 1e-3


def test_infer_stays_within_its_memory(full: Full, say: Say) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(full.folder / "image.png")
    found = measured(full.folder, "infer", "image.png", "the building", "the road", "--bundle", "bundle")
    say(f"infer, cold: {found.wall_s:.1f} s, peak {found.peak_gib:.2f} GiB")
    assert len(found.document["results"]) == 2
    assert found.peak_gib <= INFER_GIB[full.preset]


def test_half_precision_halves_the_bytes_keeps_every_stage_and_is_fused(full: Full, say: Say) -> None:
    exporting = measured(full.folder, "export", "run", "--fp16", "--no-check", "--out", "half")
    share = size_without_reference(full.folder / "half") / size_without_reference(full.folder / "bundle")
    report = measured(full.folder, "parity", "--bundle", "half").document
    worst = {row["output"]: row["relative_l2"] for row in report["tensors"] if row["check"] == "stage"}
    say(f"fp16: export {exporting.wall_s:.0f} s, {share:.1%} of the bytes, worst stage {max(worst.values()):.1e} L2")
    assert report["precision"] == "fp16"
    assert share <= 0.51
    assert len(worst) == 7
    assert all(error <= 1e-2 for error in worst.values())  # null, for a value that is not finite, would fail here
    assert exporting.peak_gib <= EXPORT_GIB[full.preset]
    compiling = measured(full.folder, "build", "--check", "--bundle", "half")
    stages = {row["stage"]: (row["fused"], row["attentions"]) for row in compiling.document["stages"]}
    say(f"compile check: {compiling.wall_s:.0f} s, peak {compiling.peak_gib:.2f} GiB, attentions fused {stages}")
    assert all(fused == attentions for fused, attentions in stages.values())
    assert full.preset != "b" or (compiling.wall_s <= 180 and compiling.peak_gib <= 5)
