"""A second opinion: polygraphy runs the bundle's graphs, and its comparator judges them as ``rsrefseg parity`` does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, SimpleCompareFunc

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.bench.parity.report import ParityReport
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.bundle.tolerances import Measure, Scope, tolerances
from tests.support.exported import Exported, shifted_bundle

ROUNDING = 2.0**-23


@dataclass
class Opinion:
    """What polygraphy says of one output, over all reference samples."""

    passed: bool = True
    max_abs: float = 0.0
    scale: float = 0.0


def polygraphy_opinions(root: Path) -> dict[str, Opinion]:
    """Every stage on PyTorch's inputs against PyTorch's outputs, all of it by polygraphy."""
    bundle = Bundle.open(root)
    opinions: dict[str, Opinion] = {}
    for stage in Stage:
        contract = bundle.manifest.stages[stage].contract
        (limit,) = tolerances("fp32", Scope.STAGE)
        assert limit.measure is Measure.SHARE_OF_MAX
        session = SessionFromOnnx(str(bundle.graph_path(stage)), providers=["cpu"])
        for sample in load_reference(bundle):
            wanted = sample.outputs(contract)
            results = Comparator.run([OnnxrtRunner(session, name="onnxruntime")], data_loader=[sample.inputs(contract)])
            results.add([wanted], runner_name="torch")
            scales = {name: float(np.abs(array).max()) for name, array in wanted.items()}
            judge = SimpleCompareFunc(atol={name: limit.limit * scale for name, scale in scales.items()}, rtol=0)
            (comparison,) = Comparator.compare_accuracy(results, compare_func=judge)
            ((matches,),) = comparison.values()
            for name, scale in scales.items():
                opinion = opinions.setdefault(name, Opinion())
                opinion.passed &= bool(matches[name])
                opinion.max_abs = max(opinion.max_abs, float(matches[name].max_absdiff))
                opinion.scale = max(opinion.scale, scale)
    return opinions


def assert_both_agree(opinions: dict[str, Opinion], report: ParityReport) -> None:
    """The same outputs pass, and the errors are the same within the roundings of one float32 operation."""
    rows = {row.output: row for row in report.tensors if row.check == "stage"}
    assert opinions.keys() == rows.keys()
    for name, opinion in opinions.items():
        assert opinion.passed == rows[name].passed
        assert opinion.max_abs == pytest.approx(rows[name].max_abs_error, rel=1e-5, abs=4 * ROUNDING * opinion.scale)


@pytest.mark.parametrize("times", [0.5, 2.0])
@pytest.mark.parametrize(
    ("stage", "output"),
    [
        (Stage.SIGLIP_VISION, "clip_features"),
        (Stage.SAM_ENCODER, "image_embedding"),
        (Stage.SAM_DECODER, "mask_logits"),
    ],
)
def test_both_judge_a_fault_near_the_limit_alike(
    exported: Exported, tmp_path: Path, stage: Stage, output: str, times: float
) -> None:
    """Half the limit passes, twice the limit fails. All other outputs are a true export's."""
    (limit,) = tolerances("fp32", Scope.STAGE)
    # The sample with the smallest values is the first to fail.
    scale = min(np.abs(sample.tensors[output]).max() for sample in load_reference(Bundle.open(exported.bundle)))
    shift = np.full((1,), times * limit.limit * scale, np.float32)
    spoiled = shifted_bundle(exported.bundle, tmp_path / "bundle", stage, output, shift)
    opinions = polygraphy_opinions(spoiled)
    assert len(opinions) == 7
    assert [name for name, opinion in opinions.items() if not opinion.passed] == ([output] if times > 1 else [])
    assert_both_agree(opinions, run_parity(spoiled, "onnxruntime"))
