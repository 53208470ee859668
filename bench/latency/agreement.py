"""Whether a contender answers as FP32 PyTorch did at export: what makes its speed count."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsrefseg.engines.bundle.comparison import TensorError, mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.engines.bundle.tolerances import COARSENESS, Measure, Scope, Verdict, judge, tolerances

from .runners import Contender, Tensors
from .scenarios import Scenario, different_phrases

_SHORT = {Measure.SHARE_OF_MAX: "", Measure.RELATIVE_L2: " L2"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far results are from those FP32 PyTorch gave at export, and whether that is near enough.

    Attributes:
        error: of a stage's worst output, or of the worst phrase's mask logits.
        verdicts: by the tolerances of the precision that the contender computes in.
        iou_worst, iou_mean: of the masks; ``None`` for a stage, and for random weights, whose masks mean nothing.
    """

    error: TensorError
    verdicts: tuple[Verdict, ...]
    iou_worst: float | None = None
    iou_mean: float | None = None

    @property
    def holds(self) -> bool:
        """Whether its speed counts: a fast wrong answer is none."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def text(self) -> str:
        """In a word: the worst IoU of trained weights' masks; for random weights and for stages the error that has a
        limit, the largest as a share of the maximum or, in half precision, the relative L2."""
        if self.iou_worst is not None:
            return f"IoU {self.iou_worst:.4f}"
        judged = self.verdicts[0].tolerance.measure
        return f"{self.error.measures()[judged]:.1e}{_SHORT[judged]}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        ious = {"mask_iou_worst": self.iou_worst, "mask_iou_mean": self.iou_mean}
        return {**self.error.as_dict(), **ious, "holds": self.holds, "text": self.text}


def agreements_of(
    contender: Contender, scenarios: Sequence[Scenario], sample: ReferenceSample
) -> dict[tuple[str, str], Agreement]:
    """Hold a loaded contender against a reference sample, by scenario and span as its times are reported.

    Args:
        contender: loaded.
        scenarios: those that will be timed: each with its own number of phrases, the way its users go.
        sample: what PyTorch answered; where a scenario asks more phrases, others are asked between its own.
    """
    found: dict[tuple[str, str], Agreement] = {}
    # Already stretched to the network's size, where stretching changes nothing.
    picture = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    features = contender.encode(picture)
    by_count: dict[int, Agreement] = {}
    for scenario in scenarios:
        if scenario.by_stage:
            found |= {(scenario.name, stage.value): _of_stage(contender, stage, sample) for stage in Stage}
            continue
        if scenario.phrases not in by_count:
            by_count[scenario.phrases] = _of_answer(contender, features, scenario.phrases, sample)
        found |= {(scenario.name, span): by_count[scenario.phrases] for span in scenario.spans}
    return found


def _of_answer(contender: Contender, features: Any, count: int, sample: ReferenceSample) -> Agreement:
    known = min(count, len(sample.phrases))
    phrases = list(different_phrases(sample.phrases, count))
    # From the first place of the batch to the last.
    places = [index * (count - 1) // max(known - 1, 1) for index in range(known)]
    others = iter(phrases[known:])
    own = dict(zip(places, phrases[:known], strict=True))
    answer = contender.ask(
        features, [own[place] if place in own else next(others) for place in range(count)], sample.original_size
    )
    wanted = sample.tensors["mask_logits"][:known, 0]
    error = _worst(tensor_error(one, other) for one, other in zip(wanted, answer.mask_logits[places], strict=True))
    precision = max((contender.precision(stage) for stage in Stage), key=COARSENESS.index)
    if contender.bundle.manifest.provenance.random_weights:
        return Agreement(error, judge(error.measures(), tolerances(precision, Scope.STAGE, Stage.SAM_DECODER)))
    ious = [mask_iou(one, other) for one, other in zip(sample.masks[:known], answer.masks[places], strict=True)]
    worst, mean = min(ious), float(np.mean(ious))
    values = error.measures() | {Measure.IOU_WORST: worst, Measure.IOU_MEAN: mean}
    return Agreement(error, judge(values, tolerances(precision, Scope.MASKS)), worst, mean)


def _of_stage(contender: Contender, stage: Stage, sample: ReferenceSample) -> Agreement:
    """A stage on PyTorch's own inputs."""
    contract = contender.bundle.manifest.stages[stage].contract
    results: Tensors = contender.run(stage, sample.inputs(contract))
    error = _worst(
        tensor_error(wanted, contender.to_host(results[name])) for name, wanted in sample.outputs(contract).items()
    )
    limits = tolerances(contender.precision(stage), Scope.STAGE, stage)
    return Agreement(error, judge(error.measures(), limits))


def _worst(errors: Iterable[TensorError]) -> TensorError:
    first, *others = errors
    for other in others:
        first = first.worst(other)
    return first
