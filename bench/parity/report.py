"""Report of a parity check: rows that pass or fail."""

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
    STAGE: "each stage on PyTorch's inputs",
    CHAINED: "chained: each stage on the engine's outputs",
}


class _Judged(Record, frozen=True, kw_only=True):
    """Values compared with their limits.

    Attributes:
        limits: limits by measure.
        failures: a line for each exceeded limit.
        passed: whether no limit is exceeded.
    """

    limits: dict[str, float]
    failures: tuple[str, ...]
    passed: bool

    @classmethod
    def judge(cls: type[_T], values: Mapping[Measure, float], limits: Sequence[Tolerance], **fields: Any) -> _T:
        """Compare values with limits; ``fields`` are the fields of the subclass."""
        verdicts = judge(values, limits)
        failures = tuple(str(verdict).removeprefix("FAIL  ") for verdict in verdicts if not verdict.passed)
        by_measure = {limit.measure.value: limit.limit for limit in limits}
        return cls(limits=by_measure, failures=failures, passed=not failures, **fields)


class TensorRow(_Judged, frozen=True, kw_only=True):
    """Largest errors of a stage output over all reference samples.

    Attributes:
        check: ``stage`` (on PyTorch's inputs) or ``chained`` (on the engine's outputs of earlier stages).
        stage: the stage.
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
    """Comparison of one phrase of a reference sample, from pixels and phrase to the mask at the image's size.

    Attributes:
        sample: index of the reference sample.
        phrase: the phrase.
        iou: IoU of the engine's mask with PyTorch's mask.
        max_logit_error, share_of_max: errors of the mask logits, see ``TensorError``.
        flipped_pixels: number of pixels in exactly one of the masks.
        flipped_ties: number of flipped pixels with a logit so close to 0 that the tolerance allows either sign; they
            count as flipped.
        pixels: number of pixels of the image.
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
    """Comparison of all masks of the reference samples: number, worst and mean values, and rows."""

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
        """Summarise rows and compare them with limits."""
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
    """Comparison of PyTorch and the engine on a data set; scores are fractions in [0, 1].

    Attributes:
        data: data set and split.
        samples: number of samples.
        giou_torch: gIoU of PyTorch at the images' size.
        giou_engine: gIoU of the engine.
        giou_difference: engine minus PyTorch.
        iou_worst: lowest IoU of the engine's mask with PyTorch's mask.
        iou_mean: mean IoU of the engine's masks with PyTorch's masks.
        flipped_pixels: number of differing pixels in all masks.
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
    """Result of a parity check.

    Attributes:
        bundle: folder of the bundle.
        backend: the runtime.
        backend_reason: reason for the choice of the runtime.
        providers: device or provider of each stage.
        precision: coarsest precision of the graphs.
        checkpoint_sha256: digest of the merged model the bundle was exported from.
        tokens_equal: whether the bundle's tokenizer encodes the reference phrases as in training.
        tensors: comparison of stage outputs, single and chained.
        masks: end-to-end comparison.
        data: comparison on a data set, if one was given.
        notes: notes about the bundle, one line each.
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
        """Whether all rows pass."""
        judged = (*self.tensors, self.masks, *([self.data] if self.data is not None else []))
        return self.tokens_equal and all(part.passed for part in judged)

    @property
    def failure(self) -> str:
        """One line if parity does not hold, otherwise empty."""
        return "" if self.holds else "parity does not hold (see the rows marked FAIL)"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {"holds": self.holds, **Record.to_dict(self)}

    def render(self) -> Group:
        """Return tables and the conclusion for a terminal."""
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
            parts.append(Text("FAIL  the bundle's tokenizer encodes the reference phrases unlike in training", "red"))
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
    table = Table("end to end: from pixels and phrases to masks", columns, verdict=True)
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
