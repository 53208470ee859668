"""NVIDIA's compiler keeps attention fused and products quantised in INT8 and FP8. Needs no GPU."""

from pathlib import Path

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.tensorrt.check import check_compilation
from rsrefseg.export.export import export_run
from rsrefseg.export.quantization.settings import QUANTIZED_STAGES
from rsrefseg.export.settings import ExportSettings
from tests.support.exported import Exported
from tests.support.quantized import quantized, static


@pytest.fixture(scope="module")
def half_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    return Bundle.open(Path(export_run(exported.run, folder, ExportSettings(plan={})).bundle))


@pytest.mark.parametrize(("precision", "gpu"), [("int8", "sm86"), ("fp8", "sm120")])
def test_the_compiler_fuses_attention_and_keeps_products_quantised(
    half_bundle: Bundle, exported: Exported, tmp_path: Path, precision: str, gpu: str
) -> None:
    made = quantized(half_bundle, tmp_path / "out", static(exported, tensorrt=True, precision=precision))
    report = check_compilation(made, QUANTIZED_STAGES, (gpu,))
    assert report.failure is None
    for check in report.stages:
        record = made.manifest.stages[check.stage]
        assert record.precision == precision
        assert record.quantization is not None
        assert record.quantization.relative_l2 is not None
        assert record.quantization.relative_l2 < 0.1
        assert check.fused == check.attentions == check.half
        assert check.quantized > 0
