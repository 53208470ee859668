"""What a parity check found: rows that pass or fail, for people and for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsrefseg.engines.bundle.comparison import TensorError, finite
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.tolerances import Measure, Tolerance, Verdict, judge


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One output of one stage, the worst over all reference samples.

    Attributes:
        check: ``stage`` (fed with PyTorch's inputs) or ``chained`` (fed with the engine's own previous outputs).
        stage: which.
        output: contract name of the tensor.
        error: how far it is from PyTorch's.
        limits: what it is judged by.
    """

    check: str
    stage: Stage
    output: str
    error: TensorError
    limits: tuple[Tolerance, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each limit, applied."""
        return judge(self.error.measures(), self.limits)

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "check": self.check,
            "stage": self.stage.value,
            "output": self.output,
            **self.error.as_dict(),
            "limits": _limits(self.limits),
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One phrase of one reference sample, from pixels and words to the mask at the picture's size.

    Attributes:
        sample: index of the reference sample.
        phrase: what was asked.
        iou: of the engine's mask with PyTorch's.
        logits: error of the mask logits.
        flipped_pixels: pixels that are in one mask and not in the other.
        flipped_ties: those among them that the logits' tolerance lets fall either way; they count, but explain a miss.
        pixels: of the picture.
    """

    sample: int
    phrase: str
    iou: float
    logits: TensorError
    flipped_pixels: int
    flipped_ties: int
    pixels: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "sample": self.sample,
            "phrase": self.phrase,
            "iou": self.iou,
            "max_logit_error": finite(self.logits.max_abs),
            "share_of_max": finite(self.logits.share_of_max),
            "flipped_pixels": self.flipped_pixels,
            "flipped_ties": self.flipped_ties,
            "pixels": self.pixels,
        }


@dataclass(frozen=True, slots=True)
class MaskResult:
    """All masks of the reference samples."""

    rows: tuple[MaskRow, ...]
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, rows: Sequence[MaskRow], limits: tuple[Tolerance, ...]) -> "MaskResult":
        """Judge masks."""
        values = {
            Measure.SHARE_OF_MAX: max(row.logits.share_of_max for row in rows),
            Measure.IOU_WORST: min(row.iou for row in rows),
            Measure.IOU_MEAN: sum(row.iou for row in rows) / len(rows),
        }
        return cls(tuple(rows), judge(values, limits))

    @property
    def worst_iou(self) -> float:
        """The lowest IoU of an engine's mask with PyTorch's."""
        return min(row.iou for row in self.rows)

    @property
    def mean_iou(self) -> float:
        """The mean of them."""
        return sum(row.iou for row in self.rows) / len(self.rows)

    @property
    def flipped_pixels(self) -> int:
        """Pixels that differ, in all masks."""
        return sum(row.flipped_pixels for row in self.rows)

    @property
    def flipped_ties(self) -> int:
        """Those among them that the tolerance of the logits lets fall either way."""
        return sum(row.flipped_ties for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "masks": len(self.rows),
            "iou_worst": self.worst_iou,
            "iou_mean": self.mean_iou,
            "max_logit_error": finite(max(row.logits.max_abs for row in self.rows)),
            "share_of_max": finite(max(row.logits.share_of_max for row in self.rows)),
            "flipped_pixels": self.flipped_pixels,
            "flipped_ties": self.flipped_ties,
            "limits": _limits(tuple(verdict.tolerance for verdict in self.verdicts)),
            "passed": self.passed,
            "rows": [row.as_dict() for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class DataResult:
    """A data set answered by PyTorch and by the engine; fractions in [0, 1].

    Attributes:
        data: data set and split.
        samples: how many.
        torch_giou: gIoU of PyTorch, original size.
        engine_giou: the engine's.
        iou_worst: lowest IoU of the engine's mask with PyTorch's.
        iou_mean: mean of them.
        flipped_pixels: pixels that differ, in all masks.
        verdicts: what is judged.
    """

    data: str
    samples: int
    torch_giou: float
    engine_giou: float
    iou_worst: float
    iou_mean: float
    flipped_pixels: int
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(
        cls,
        *,
        data: str,
        torch_giou: float,
        engine_giou: float,
        agreement: Sequence[float],
        flipped_pixels: int,
        limits: tuple[Tolerance, ...],
    ) -> "DataResult":
        """Judge a data set; ``agreement`` is each sample's IoU of both masks."""
        mean = sum(agreement) / len(agreement)
        values = {Measure.GIOU_DIFFERENCE: abs(engine_giou - torch_giou)}
        verdicts = judge(values, limits)
        return cls(data, len(agreement), torch_giou, engine_giou, min(agreement), mean, flipped_pixels, verdicts)

    @property
    def giou_difference(self) -> float:
        """Engine minus PyTorch."""
        return self.engine_giou - self.torch_giou

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "data": self.data,
            "samples": self.samples,
            "gIoU_torch": self.torch_giou,
            "gIoU_engine": self.engine_giou,
            "gIoU_difference": self.giou_difference,
            "iou_worst": self.iou_worst,
            "iou_mean": self.iou_mean,
            "flipped_pixels": self.flipped_pixels,
            "limits": _limits(tuple(verdict.tolerance for verdict in self.verdicts)),
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Everything a parity check found.

    Attributes:
        bundle: the bundle's folder.
        backend: what ran it.
        backend_reason: why that one.
        providers: what really ran each stage.
        precision: the coarsest of the graphs.
        checkpoint_sha256: of the merged model the bundle was exported from.
        tokens_equal: whether the bundle's tokenizer reads the reference phrases as training did.
        tensors: stage by stage and chained.
        masks: end to end.
        data: on a data set, where one was given.
        notes: what to know about the bundle, one line each.
    """

    bundle: str
    backend: str
    backend_reason: str
    providers: Mapping[str, str]
    precision: str
    checkpoint_sha256: str | None
    tokens_equal: bool
    tensors: tuple[TensorRow, ...]
    masks: MaskResult
    data: DataResult | None
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every row passed."""
        parts = [self.tokens_equal, *(row.passed for row in self.tensors), self.masks.passed]
        return all(parts) and (self.data is None or self.data.passed)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "holds": self.holds,
            "bundle": self.bundle,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "providers": dict(self.providers),
            "precision": self.precision,
            "checkpoint_sha256": self.checkpoint_sha256,
            "tokens_equal": self.tokens_equal,
            "tensors": [row.as_dict() for row in self.tensors],
            "masks": self.masks.as_dict(),
            "data": self.data.as_dict() if self.data is not None else None,
            "notes": list(self.notes),
        }

    def render(self) -> Any:
        """Tables for a person."""
        from .tables import render_parity

        return render_parity(self)


def _limits(tolerances: tuple[Tolerance, ...]) -> dict[str, Any]:
    return {tolerance.measure.value: tolerance.limit for tolerance in tolerances}
