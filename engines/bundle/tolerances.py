"""The tolerances of engines against FP32 PyTorch, with the reason for every limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Measure(str, Enum):  # noqa: UP042 (StrEnum needs Python 3.11)
    """A measured quantity. ``IOU_*`` must be at least their limit, all others at most."""

    SHARE_OF_MAX = "share_of_max"
    RELATIVE_L2 = "relative_l2"
    IOU_WORST = "mask_iou_worst"
    IOU_MEAN = "mask_iou_mean"
    GIOU_DIFFERENCE = "giou_difference"

    @property
    def sign(self) -> str:
        """The comparison of a passing value with its limit: ``>=`` or ``<=``."""
        return ">=" if self in (Measure.IOU_WORST, Measure.IOU_MEAN) else "<="


class Scope(str, Enum):  # noqa: UP042
    """The object of a tolerance: one output of a stage, the final masks of the reference, or a data set's score."""

    STAGE = "stage"
    MASKS = "masks"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A limit on one measured quantity.

    Attributes:
        precision: the precision it applies to, as ``Engine.precision_of`` returns it.
        scope: the object it applies to.
        measure: the measured quantity.
        limit: the last value that passes.
        reason: why the limit has this value.
    """

    precision: str
    scope: Scope
    measure: Measure
    limit: float
    reason: str

    def allows(self, value: float) -> bool:
        """Return whether a value passes; NaN never does."""
        return value >= self.limit if self.measure.sign == ">=" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value and the tolerance it must be within."""

    tolerance: Tolerance
    value: float

    @property
    def passed(self) -> bool:
        """Whether the value is within its tolerance."""
        return self.tolerance.allows(self.value)

    def __str__(self) -> str:
        if self.passed:
            return "PASS"
        measure = self.tolerance.measure
        return f"FAIL  {measure.value} {self.value:.3g}, must be {measure.sign} {self.tolerance.limit:g}"


COARSENESS = ("fp32", "fp16", "bf16", "int8", "fp8")  # from fine to coarse

_ROUNDING = "float32 sums in another order differ by a few hundred roundings of 6e-8; a wrong operator by far more"
_EDGE = "such errors flip only pixels whose logit is nearly 0 (see tie_share): none, or one of a large mask"
_HALF = "weights and products with 11 significant bits (5e-4 each), averaged over hundreds of terms"
_BRAIN = "weights and products with 8 significant bits (4e-3 each), averaged over hundreds of terms"
_SEVEN = "activations in 256 steps of their range, weights in 128 (8e-3 each); outliers widen the range"
_E4M3 = "weights and activations with 4 significant bits (6e-2 each), averaged over hundreds of terms"
_SMALL = "small masks have few pixels, and edges move by one of them, or by two in bfloat16"

TOLERANCES = (
    Tolerance("fp32", Scope.STAGE, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.IOU_WORST, 0.999, _EDGE),
    Tolerance("fp32", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.0005, "0.05 percentage points of gIoU"),
    Tolerance("fp16", Scope.STAGE, Measure.RELATIVE_L2, 1e-2, _HALF),
    Tolerance("fp16", Scope.MASKS, Measure.IOU_WORST, 0.98, _SMALL),
    Tolerance("fp16", Scope.MASKS, Measure.IOU_MEAN, 0.995, "the allowance for half precision over all masks"),
    Tolerance("fp16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "less than the difference between two trainings"),
    Tolerance("bf16", Scope.STAGE, Measure.RELATIVE_L2, 2e-2, _BRAIN),
    Tolerance("bf16", Scope.MASKS, Measure.IOU_WORST, 0.9, _SMALL),
    Tolerance("bf16", Scope.MASKS, Measure.IOU_MEAN, 0.99, "three bits fewer than FP16, and twice its allowance"),
    Tolerance("bf16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "as in FP16: edges move in both directions"),
    Tolerance("int8", Scope.STAGE, Measure.RELATIVE_L2, 5e-2, _SEVEN),
    Tolerance("int8", Scope.MASKS, Measure.IOU_WORST, 0.8, _SMALL),
    Tolerance("int8", Scope.MASKS, Measure.IOU_MEAN, 0.98, "twice the allowance of BF16"),
    Tolerance("int8", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "as in FP16: edges move in both directions"),
    Tolerance("fp8", Scope.STAGE, Measure.RELATIVE_L2, 1e-1, _E4M3),
    Tolerance("fp8", Scope.MASKS, Measure.IOU_WORST, 0.8, _SMALL),
    Tolerance("fp8", Scope.MASKS, Measure.IOU_MEAN, 0.97, "three times the allowance of BF16"),
    Tolerance("fp8", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "as in FP16: edges move in both directions"),
)


def tolerances(precision: str, scope: Scope) -> tuple[Tolerance, ...]:
    """Return the limits for a precision and scope."""
    return tuple(limit for limit in TOLERANCES if (limit.precision, limit.scope) == (precision, scope))


def tie_share(limits: Sequence[Tolerance]) -> float:
    """Return the share of the largest logit below which a logit is a tie: its tolerance allows either sign.

    The share is 0 if the limits have none for logits, as in half precision, whose IoU limits allow for flipped edges.
    """
    return next((limit.limit for limit in limits if limit.measure is Measure.SHARE_OF_MAX), 0.0)


def judge(values: Mapping[Measure, float], limits: Sequence[Tolerance]) -> tuple[Verdict, ...]:
    """Compare measured values with their limits.

    Raises:
        KeyError: the measure of a limit has no value.
    """
    return tuple(Verdict(limit, values[limit.measure]) for limit in limits)
