"""Polygraphy runs the bundle's graphs, and its comparator agrees with ``rsrefseg parity``."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, SimpleCompareFunc

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.bundle.tolerances import Measure, Scope, tolerances
from tests.support.exported import Exported, shifted_bundle

ROUNDING = 2.0**-23


class Opinion(NamedTuple):
    """Result of polygraphy for one output of a reference sample."""

    passed: bool
    max_abs: float
    scale: float


def polygraphy_opinions(root: Path) -> dict[str, list[Opinion]]:
    """Compare every stage on PyTorch's inputs with PyTorch's outputs, using polygraphy."""
    bundle = Bundle.open(root)
    opinions: dict[str, list[Opinion]] = {}
    (limit,) = tolerances("fp32", Scope.STAGE)
    assert limit.measure is Measure.SHARE_OF_MAX
    for stage in Stage:
        contract = bundle.manifest.stages[stage].contract
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
                opinion = Opinion(bool(matches[name]), float(matches[name].max_absdiff), scale)
                opinions.setdefault(name, []).append(opinion)
    return opinions


@pytest.mark.parametrize("times", [0.5, 2.0])
@pytest.mark.parametrize(
    ("stage", "output"),
    [
        (Stage.SIGLIP_VISION, "clip_features"),
        (Stage.SAM_ENCODER, "image_embedding"),
        (Stage.SAM_DECODER, "mask_logits"),
    ],
)
def test_both_judge_faults_alike(exported: Exported, tmp_path: Path, stage: Stage, output: str, times: float) -> None:
    """Half the limit passes, twice the limit fails. All other outputs are unchanged."""
    (limit,) = tolerances("fp32", Scope.STAGE)
    # The sample with the smallest values is the first to fail.
    scale = min(np.abs(sample.tensors[output]).max() for sample in load_reference(Bundle.open(exported.bundle)))
    shift = np.full((1,), times * limit.limit * scale, np.float32)
    spoiled = shifted_bundle(exported.bundle, tmp_path / "bundle", stage, output, shift)
    opinions = polygraphy_opinions(spoiled)
    failed = {name for name, found in opinions.items() if not all(one.passed for one in found)}
    assert failed == ({output} if times > 1 else set())
    rows = {row.output: row for row in run_parity(spoiled, "onnxruntime").tensors if row.check == "stage"}
    assert len(opinions) == 7
    assert opinions.keys() == rows.keys()
    for name, found in opinions.items():
        passed, errors, scales = zip(*found, strict=True)
        assert all(passed) == rows[name].passed
        rounding = 4 * ROUNDING * max(scales)  # of one float32 operation
        assert max(errors) == pytest.approx(rows[name].max_abs_error, rel=1e-5, abs=rounding)
