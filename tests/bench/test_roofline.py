"""Manually computed rooflines, rooflines of known devices, and measured peaks of this machine."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from rsrefseg.bench.latency.roofline import DEVICES, Roofline, expected_rooflines, roofline_of
from rsrefseg.bench.system.peaks import MATMUL, Peaks, measure_peaks
from rsrefseg.engines.bundle.contracts import Stage, stage_contracts
from rsrefseg.engines.bundle.manifest import FileRecord, StageRecord
from rsrefseg.model.config import model_config
from rsrefseg.model.model import geometry

CONTRACTS = stage_contracts(geometry(model_config("b")))
# Preset b as published: operations of one image and one phrase, and weights.
PRESET_B = {
    Stage.SIGLIP_VISION: (666_448_114_176, 412_986_103),
    Stage.SIGLIP_TEXT: (53_129_281_536, 449_733_750),
    Stage.ATTN_PROMPTER: (1_694_556_416, 2_316_807),
    Stage.SAM_ENCODER: (972_077_334_528, 91_840_266),
    Stage.SAM_DECODER: (4_421_017_600, 4_555_473),
}
# Worked out independently for these devices in FP16, ms; figures of two digits.
EXPECTED_MS = {
    Stage.SAM_ENCODER: {"H200": 1.23, "RTX 4090": 5.9, "AGX Orin": 22.8, "Orin Nano Super": 58},
    Stage.SIGLIP_VISION: {"H200": 0.84, "RTX 4090": 4.0, "AGX Orin": 15.6, "Orin Nano Super": 40},
    Stage.SIGLIP_TEXT: {"H200": 0.19, "RTX 4090": 0.8, "AGX Orin": 4.0, "Orin Nano Super": 8.1},
    "sum": {"H200": 2.26, "RTX 4090": 10.7, "AGX Orin": 42.5, "Orin Nano Super": 106},
}
HERE = Peaks("cpu", {"fp32": 2e11, "bf16": 4e11}, 3e10, "by hand")


def record_of(stage: Stage, precision: str = "fp32") -> StageRecord:
    flops, parameters = PRESET_B[stage]
    return StageRecord(
        contract=CONTRACTS[stage],
        graph=FileRecord(f"{stage}.onnx", "0" * 64, 1),
        data=(),
        opset=18,
        precision=precision,
        attention=None,
        flops=flops,
        parameters=parameters,
        weight_bytes=parameters * (4 if precision == "fp32" else 2),
    )


def records(precision: str = "fp32") -> dict[Stage, StageRecord]:
    return {stage: record_of(stage, precision) for stage in Stage}


def roofline(*stages: Stage, peaks: Peaks = HERE, precision: str = "fp32", phrases: int = 1) -> Roofline:
    found = roofline_of([record_of(stage) for stage in stages], peaks, dict.fromkeys(Stage, precision), phrases)
    assert found is not None
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rooflines_of_known_devices_are_those_worked_out_for_them(precision: str) -> None:
    """Within 3% of values that are rounded to half a unit of their last digit."""
    found = expected_rooflines(records(precision))
    assert found.keys() == DEVICES.keys()
    for stage, expected in EXPECTED_MS.items():
        for device, wanted in expected.items():
            digits = len(str(wanted).partition(".")[2])
            rounding = 0.5 * 10**-digits
            assert found[device][str(stage)] == pytest.approx(wanted, rel=0.03, abs=max(rounding, 0.03 * wanted)), stage


def test_stages_are_bound_by_their_operations_or_by_reading_their_weights() -> None:
    sam = roofline(Stage.SAM_ENCODER)
    assert sam.bound == "compute"
    assert sam.least_ms == pytest.approx(972.077e9 / 2e11 * 1e3, rel=1e-4)
    image, embedding = 3 * 1024 * 1024, 4 * 256 * 64 * 64
    assert sam.bytes == 4 * 91_840_266 + image + embedding
    text = roofline(Stage.SIGLIP_TEXT, peaks=DEVICES["H200"], precision="fp16")
    assert text.bound == "memory"
    assert text.least_ms == pytest.approx(text.bytes / 4.3e12 * 1e3)
    table = 32_000 * 1152  # of the embeddings only the rows of the phrase are read
    assert roofline(Stage.SIGLIP_TEXT).bytes == pytest.approx(4 * (449_733_750 - table), rel=0.01)


def test_weights_are_read_in_the_precision_that_computes() -> None:
    bf16 = roofline(Stage.SIGLIP_VISION, precision="bf16").bytes
    assert bf16 == pytest.approx(roofline(Stage.SIGLIP_VISION).bytes / 2, rel=0.01)
    half = roofline_of([record_of(Stage.SIGLIP_VISION, "fp16")], HERE, dict.fromkeys(Stage, "fp32"))
    assert half is not None
    assert half.bytes == bf16


def test_more_phrases_grow_what_takes_them_and_nothing_else() -> None:
    assert roofline(Stage.SAM_DECODER, phrases=8).flops == 8 * roofline(Stage.SAM_DECODER).flops
    assert roofline(Stage.SAM_ENCODER, phrases=8) == roofline(Stage.SAM_ENCODER)
    eight, one = roofline(Stage.SIGLIP_TEXT, phrases=8), roofline(Stage.SIGLIP_TEXT)
    assert eight.bytes < 1.01 * one.bytes, "weights are read once"


def test_the_roofline_of_several_stages_is_their_sum() -> None:
    found = roofline(*Stage)
    parts = [roofline(stage) for stage in Stage]
    assert found.least_ms == pytest.approx(sum(part.least_ms for part in parts))
    assert (found.flops, found.bytes) == (sum(part.flops for part in parts), sum(part.bytes for part in parts))
    assert found.bound == roofline(Stage.SAM_ENCODER).bound, "most of the time"


def test_without_a_peak_there_is_no_roofline() -> None:
    stages, fp32 = [record_of(stage) for stage in Stage], dict.fromkeys(Stage, "fp32")
    assert roofline_of(stages, HERE, fp32 | {Stage.SAM_ENCODER: "fp16"}) is None
    assert roofline_of(stages, Peaks("cpu", {"fp32": 1e11}, None, "by hand"), fp32) is None


def test_the_peaks_of_one_core_are_plausible() -> None:
    peaks = measure_peaks(1)
    assert 1e9 < peaks.flops_per_s["fp32"] < 1e12
    assert 1e8 < (peaks.bandwidth_bytes_per_s or 0) < 1e12
    assert peaks.threads == 1
    assert 0 < (peaks.cores_used or 0) < 1.1
    assert Peaks(**json.loads(json.dumps(peaks.to_dict()))) == peaks


def test_peaks_need_no_torch_and_the_folder_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    monkeypatch.syspath_prepend(str(site))
    found = measure_peaks(1)
    assert found.flops_per_s.keys() == {"fp32"}
    assert "torch" not in found.how
    missing = measure_peaks(1, "cuda")
    assert (missing.flops_per_s, missing.bandwidth_bytes_per_s) == ({}, None)
    assert "torch" in missing.how


def test_the_product_graph_is_what_onnx_writes() -> None:
    sizes = {"a": ["m", "k"], "b": ["k", "n"], "c": ["m", "n"]}
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in sizes.items()]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="")
    assert model.SerializeToString() == MATMUL
    onnx.checker.check_model(model)


def test_peaks_of_a_busy_machine_or_an_unknown_device_have_a_note() -> None:
    (note,) = Peaks("cpu", {"fp32": 1e11}, 1e10, "numpy", threads=4, cores_used=2.5).notes()
    assert "4 threads had only 2.5 cores" in note
    assert Peaks("cpu", {"fp32": 1e11}, 1e10, "numpy", threads=4, cores_used=3.9).notes() == []
    (note,) = measure_peaks(1, "intel-gpu").notes()
    assert "no roofline for intel-gpu" in note
