"""Compares results of runners with those of FP32 PyTorch at export, because times of wrong results are invalid."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from msgspec import Struct

from rsrefseg.engines.bundle.comparison import TensorError, mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.engines.bundle.tolerances import COARSENESS, Measure, Scope, Tolerance, judge, tolerances

from .runner import Runner
from .scenarios import Scenario, different_phrases, stored_image

_UNITS = {Measure.SHARE_OF_MAX: "", Measure.RELATIVE_L2: " L2"}


class Correctness(Struct, frozen=True):
    """Errors relative to PyTorch, judged by the tolerances of the runner's precision.

    Attributes:
        failures: exceeded limits; empty if the result is correct.
        text: the decisive value: the worst IoU for masks of trained weights, otherwise the error with a limit.
        errors: values by ``Measure``: largest errors of a stage's outputs or of the mask logits, and IoUs of masks of
            trained weights.
    """

    failures: tuple[str, ...]
    text: str
    errors: dict[Measure, float]


def check(runner: Runner, scenarios: Sequence[Scenario], sample: ReferenceSample) -> dict[tuple[str, str], Correctness]:
    """Compare a runner with a reference sample; return the results by scenario and span.

    Args:
        runner: loaded runner.
        scenarios: scenarios, each of which is checked with its number of phrases.
        sample: PyTorch's results; other phrases fill up scenarios with more phrases than the sample has.
    """
    found: dict[tuple[str, str], Correctness] = {}
    features = runner.encode(stored_image(sample))  # the image has the network's size
    by_count: dict[int, Correctness] = {}
    for scenario in scenarios:
        if scenario.by_stage:
            found |= {(scenario.name, stage.value): _check_stage(runner, stage, sample) for stage in Stage}
            continue
        if scenario.phrases not in by_count:
            by_count[scenario.phrases] = _check_masks(runner, features, scenario.phrases, sample)
        found |= {(scenario.name, span): by_count[scenario.phrases] for span in scenario.spans}
    return found


def mask_ious(runner: Runner, samples: Sequence[ReferenceSample]) -> list[float]:
    """Return the IoU of each reference mask with that of a loaded runner."""
    ious = []
    for sample in samples:
        features = runner.encode(stored_image(sample))
        found = runner.predict(features, sample.phrases, sample.original_size).masks
        ious += [mask_iou(one, other) for one, other in zip(sample.masks, found, strict=True)]
    return ious


def _check_masks(runner: Runner, features: Any, count: int, sample: ReferenceSample) -> Correctness:
    known = min(count, len(sample.phrases))
    # The sample's phrases are distributed evenly from the first to the last place of the batch.
    places = [index * (count - 1) // max(known - 1, 1) for index in range(known)]
    others = iter(different_phrases(sample.phrases, count)[known:])
    phrases = [sample.phrases[places.index(at)] if at in places else next(others) for at in range(count)]
    result = runner.predict(features, phrases, sample.original_size)
    wanted = sample.tensors["mask_logits"][:known, 0]
    error = _worst(tensor_error(one, other) for one, other in zip(wanted, result.mask_logits[places], strict=True))
    precision = max(runner.precisions.values(), key=COARSENESS.index)
    if runner.bundle.manifest.provenance.random_weights:
        return _judged(error, tolerances(precision, Scope.STAGE))
    ious = [mask_iou(one, other) for one, other in zip(sample.masks[:known], result.masks[places], strict=True)]
    values = error | {Measure.IOU_WORST: min(ious), Measure.IOU_MEAN: float(np.mean(ious))}
    return _judged(values, tolerances(precision, Scope.MASKS))


def _check_stage(runner: Runner, stage: Stage, sample: ReferenceSample) -> Correctness:
    """Check a stage on PyTorch's inputs."""
    contract = runner.bundle.manifest.stages[stage].contract
    results = runner.run(stage, sample.inputs(contract))
    error = _worst(
        tensor_error(wanted, runner.to_host(results[name])) for name, wanted in sample.outputs(contract).items()
    )
    return _judged(error, tolerances(runner.precisions[stage], Scope.STAGE))


def _judged(values: dict[Measure, float], limits: tuple[Tolerance, ...]) -> Correctness:
    iou, decisive = values.get(Measure.IOU_WORST), limits[0].measure
    return Correctness(
        failures=tuple(str(verdict) for verdict in judge(values, limits) if not verdict.passed),
        text=f"{values[decisive]:.1e}{_UNITS[decisive]}" if iou is None else f"IoU {iou:.4f}",
        errors=values,
    )


def _worst(errors: Iterable[TensorError]) -> dict[Measure, float]:
    return reduce(TensorError.worst, errors).measures()
