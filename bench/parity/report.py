"""What a parity check found: rows that pass or fail."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.tolerances import Measure, Tolerance, judge
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table

_T = TypeVar("_T", bound="_Judged")
STAGE, CHAINED = "stage", "chained"
_TITLES = {
    STAGE: "each stage on the inputs PyTorch gave it",
    CHAINED: "chained: each stage on the engine's own outputs",
}


class _Judged(Record, frozen=True, kw_only=True):
    """Values held against their limits.

    Attributes:
        limits: by measure.
        failures: a line for each limit that does not hold.
        passed: whether all hold.
    """

    limits: dict[str, float]
    failures: tuple[str, ...]
    passed: bool

    @classmethod
    def judge(cls: type[_T], values: Mapping[Measure, float], limits: Sequence[Tolerance], **fields: Any) -> _T:
        """Judge values; ``fields`` are those of the subclass."""
        verdicts = judge(values, limits)
        failures = tuple(str(verdict).removeprefix("FAIL  ") for verdict in verdicts if not verdict.passed)
        by_measure = {limit.measure.value: limit.limit for limit in limits}
        return cls(limits=by_measure, failures=failures, passed=not failures, **fields)


class TensorRow(_Judged, frozen=True, kw_only=True):
    """One output of one stage, the worst over all reference samples.

    Attributes:
        check: ``stage`` (fed with PyTorch's inputs) or ``chained`` (fed with the engine's own previous outputs).
        stage: which.
        output: contract name of the tensor.
        max_abs_error, share_of_max, relative_l2, cosine: see ``TensorError``.
    """

    check: str
    stage: Stage
    output: str
    max_abs_error: float
    share_of_max: float
    relative_l2: float
    cosine: float


class MaskRow(Record, frozen=True, kw_only=True):
    """One phrase of one reference sample, from pixels and words to the mask at the image's size.

    Attributes:
        sample: index of the reference sample.
        phrase: its phrase.
        iou: of the engine's mask with PyTorch's.
        max_logit_error, share_of_max: of the mask logits, see ``TensorError``.
        flipped_pixels: pixels in one mask but not in the other.
        flipped_ties: those among them whose logit is so near 0 that the logits' tolerance allows either sign; they
            count, but explain a miss.
        pixels: of the image.
    """

    sample: int
    phrase: str
    iou: float
    max_logit_error: float
    share_of_max: float
    flipped_pixels: int
    flipped_ties: int
    pixels: int


class MaskResult(_Judged, frozen=True, kw_only=True):
    """All masks of the reference samples: how many, the worst and the mean of their rows, and the rows."""

    masks: int
    iou_worst: float
    iou_mean: float
    max_logit_error: float
    share_of_max: float
    flipped_pixels: int
    flipped_ties: int
    rows: tuple[MaskRow, ...]

    @classmethod
    def of(cls, rows: Sequence[MaskRow], limits: Sequence[Tolerance]) -> "MaskResult":
        """Judge masks."""
        worst, mean = min(row.iou for row in rows), sum(row.iou for row in rows) / len(rows)
        share = max(row.share_of_max for row in rows)
        values = {Measure.SHARE_OF_MAX: share, Measure.IOU_WORST: worst, Measure.IOU_MEAN: mean}
        return cls.judge(
            values,
            limits,
            masks=len(rows),
            iou_worst=worst,
            iou_mean=mean,
            max_logit_error=max(row.max_logit_error for row in rows),
            share_of_max=share,
            flipped_pixels=sum(row.flipped_pixels for row in rows),
            flipped_ties=sum(row.flipped_ties for row in rows),
            rows=tuple(rows),
        )


class DataResult(_Judged, frozen=True, kw_only=True, rename=lambda name: name.replace("giou", "gIoU")):
    """A data set answered by PyTorch and by the engine; fractions in [0, 1].

    Attributes:
        data: data set and split.
        samples: how many.
        giou_torch: gIoU of PyTorch, original size.
        giou_engine: the engine's.
        giou_difference: engine minus PyTorch.
        iou_worst: lowest IoU of the engine's mask with PyTorch's.
        iou_mean: mean of them.
        flipped_pixels: pixels that differ, in all masks.
    """

    data: str
    samples: int
    giou_torch: float
    giou_engine: float
    giou_difference: float
    iou_worst: float
    iou_mean: float
    flipped_pixels: int


class ParityReport(Record, frozen=True, kw_only=True):
    """Everything a parity check found.

    Attributes:
        bundle: the bundle's folder.
        backend: the runtime.
        backend_reason: why that one.
        providers: what computed each stage.
        precision: the coarsest of the graphs.
        checkpoint_sha256: of the merged model the bundle was exported from.
        tokens_equal: whether the bundle's tokenizer encodes the reference phrases as training did.
        tensors: stage by stage and chained.
        masks: end to end.
        data: on a data set, if one was given.
        notes: what to know about the bundle, one line each.
    """

    bundle: str
    backend: str
    backend_reason: str
    providers: dict[str, str]
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
        judged = (*self.tensors, self.masks, *([self.data] if self.data is not None else []))
        return self.tokens_equal and all(part.passed for part in judged)

    @property
    def failure(self) -> str:
        """One line if it does not hold."""
        return "" if self.holds else "parity does not hold (see the rows marked FAIL)"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"holds": self.holds, **Record.to_dict(self)}

    def render(self) -> Group:
        """Tables and the conclusion, for a terminal."""
        checks = dict.fromkeys(row.check for row in self.tensors)
        parts: list[RenderableType] = [
            f"{self.bundle} ({self.precision}) on {self.backend} against FP32 PyTorch",
            *(_tensor_table(check, [row for row in self.tensors if row.check == check]).to_rich() for check in checks),
            _mask_table(self.masks).to_rich(),
        ]
        if self.masks.flipped_ties:
            parts.append(f"{self.masks.flipped_ties} of the flipped pixels are ties: the tolerance allows either sign")
        if self.data is not None:
            parts.append(_data_table(self.data).to_rich())
        if not self.tokens_equal:
            parts.append(Text("FAIL  the bundle's tokenizer encodes the reference phrases unlike training", "red"))
        parts += [Text(f"note: {note}", "yellow") for note in self.notes]
        parts.append(Text("parity holds", "green") if self.holds else Text("parity does not hold", "bold red"))
        return Group(*parts)


def _verdict(row: _Judged) -> str:
    return "PASS" if row.passed else "\n".join(f"FAIL  {failure}" for failure in row.failures)


def _tensor_table(check: str, rows: Sequence[TensorRow]) -> Table:
    columns = ("stage", "output", "max error", "of max", "rel. L2", "cosine", "")
    table = Table(_TITLES[check], columns, words=2, verdict=True)
    for row in rows:
        errors = (f"{value:.1e}" for value in (row.max_abs_error, row.share_of_max, row.relative_l2))
        table.add(row.stage.value, row.output, *errors, f"{row.cosine:.7f}", _verdict(row))
    return table


def _mask_table(result: MaskResult) -> Table:
    columns = ("masks", "worst IoU", "mean IoU", "logit error", "flipped px", "")
    table = Table("end to end: from pixels and words to masks", columns, verdict=True)
    flipped = f"{result.flipped_pixels:,} of {sum(row.pixels for row in result.rows):,}"
    ious = (f"{result.iou_worst:.6f}", f"{result.iou_mean:.6f}")
    table.add(str(result.masks), *ious, f"{result.share_of_max:.1e}", flipped, _verdict(result))
    return table


def _data_table(result: DataResult) -> Table:
    columns = ("samples", "gIoU torch", "gIoU engine", "difference", "worst IoU", "flipped px", "")
    table = Table(f"on {result.data}", columns, verdict=True)
    scores = (f"{result.giou_torch:.6f}", f"{result.giou_engine:.6f}", f"{result.giou_difference:+.6f}")
    table.add(str(result.samples), *scores, f"{result.iou_worst:.6f}", f"{result.flipped_pixels:,}", _verdict(result))
    return table
