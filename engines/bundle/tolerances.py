"""How far an engine may be from FP32 PyTorch: a table, with the reason of every limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Measure(str, Enum):  # noqa: UP042 (StrEnum needs Python 3.11)
    """A measured value. ``IOU_*`` must be at least their limit, all others at most."""

    SHARE_OF_MAX = "share_of_max"
    RELATIVE_L2 = "relative_l2"
    IOU_WORST = "mask_iou_worst"
    IOU_MEAN = "mask_iou_mean"
    GIOU_DIFFERENCE = "giou_difference"

    @property
    def sign(self) -> str:
        """How a value that passes compares with its limit."""
        return ">=" if self in (Measure.IOU_WORST, Measure.IOU_MEAN) else "<="


class Scope(str, Enum):  # noqa: UP042
    """What a tolerance applies to: one output of a stage, the final masks of the reference, or a data set's score."""

    STAGE = "stage"
    MASKS = "masks"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """One limit.

    Attributes:
        precision: it applies to, as ``Engine.precision_of`` names it.
        scope: it applies to.
        measure: the measured value.
        limit: the last value that passes.
        reason: why this limit.
    """

    precision: str
    scope: Scope
    measure: Measure
    limit: float
    reason: str

    def allows(self, value: float) -> bool:
        """Whether a value passes; not-a-number never does."""
        return value >= self.limit if self.measure.sign == ">=" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value and the tolerance it must be within."""

    tolerance: Tolerance
    value: float

    @property
    def passed(self) -> bool:
        """Whether it lies within its tolerance."""
        return self.tolerance.allows(self.value)

    def __str__(self) -> str:
        if self.passed:
            return "PASS"
        measure = self.tolerance.measure
        return f"FAIL  {measure.value} {self.value:.3g}, must be {measure.sign} {self.tolerance.limit:g}"


COARSENESS = ("fp32", "fp16", "bf16")  # from fine to coarse

_ROUNDING = "float32 sums in another order differ by a few hundred roundings of 6e-8; a wrong operator by far more"
_EDGE = "such errors flip only pixels whose logit is nearly 0 (see tie_share): none, or one of a large mask"
_HALF = "weights and products with 11 significant bits (5e-4 each), averaged over hundreds of terms"
_BRAIN = "weights and products with 8 significant bits (4e-3 each), averaged over hundreds of terms"
_SMALL = "small masks have few pixels, and edges move by one of them, or by two in bfloat16"

TOLERANCES = (
    Tolerance("fp32", Scope.STAGE, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.IOU_WORST, 0.999, _EDGE),
    Tolerance("fp32", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.0005, "a twentieth of a point; tables show 0.01"),
    Tolerance("fp16", Scope.STAGE, Measure.RELATIVE_L2, 1e-2, _HALF),
    Tolerance("fp16", Scope.MASKS, Measure.IOU_WORST, 0.98, _SMALL),
    Tolerance("fp16", Scope.MASKS, Measure.IOU_MEAN, 0.995, "what half precision may cost the masks as a whole"),
    Tolerance("fp16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "less than two trainings differ by"),
    Tolerance("bf16", Scope.STAGE, Measure.RELATIVE_L2, 2e-2, _BRAIN),
    Tolerance("bf16", Scope.MASKS, Measure.IOU_WORST, 0.9, _SMALL),
    Tolerance("bf16", Scope.MASKS, Measure.IOU_MEAN, 0.99, "three bits less than half, and so twice its loss"),
    Tolerance("bf16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "as in half precision: edges move to either side"),
)


def tolerances(precision: str, scope: Scope) -> tuple[Tolerance, ...]:
    """The limits for a precision and scope."""
    return tuple(limit for limit in TOLERANCES if (limit.precision, limit.scope) == (precision, scope))


def tie_share(limits: Sequence[Tolerance]) -> float:
    """The share of the largest logit below which a logit is a tie: the tolerance of the logits allows either sign.

    0 if the limits have no tolerance of the logits, as in half precision, whose limits on IoU allow for flipped edges.
    """
    return next((limit.limit for limit in limits if limit.measure is Measure.SHARE_OF_MAX), 0.0)


def judge(values: Mapping[Measure, float], limits: Sequence[Tolerance]) -> tuple[Verdict, ...]:
    """Hold measured values against their limits.

    Raises:
        KeyError: a limit's measure has no value.
    """
    return tuple(Verdict(limit, values[limit.measure]) for limit in limits)
