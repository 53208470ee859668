"""How far an engine may be from FP32 PyTorch: a table, with the reason of every limit."""

from dataclasses import dataclass
from enum import StrEnum

from .contracts import Stage


class Measure(StrEnum):
    """What is measured. ``IOU_*`` must reach their limit, all others must stay below it."""

    SHARE_OF_MAX = "share_of_max"
    RELATIVE_L2 = "relative_l2"
    IOU_WORST = "mask_iou_worst"
    IOU_MEAN = "mask_iou_mean"
    GIOU_DIFFERENCE = "giou_difference"

    @property
    def sign(self) -> str:
        """How a value that passes stands to its limit."""
        return ">=" if self in (Measure.IOU_WORST, Measure.IOU_MEAN) else "<="


class Scope(StrEnum):
    """What a tolerance is about: one output of a stage, the final masks of the reference, or a data set's score."""

    STAGE = "stage"
    MASKS = "masks"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """One limit.

    Attributes:
        precision: what it holds for, as ``precision_of`` names it.
        scope: what it is about.
        measure: what is measured.
        limit: the last value that passes.
        reason: why this limit.
        stages: for ``Scope.STAGE``, whose outputs.
    """

    precision: str
    scope: Scope
    measure: Measure
    limit: float
    reason: str
    stages: tuple[Stage, ...] = tuple(Stage)

    def allows(self, value: float) -> bool:
        """Whether a value passes; not-a-number never does."""
        return value >= self.limit if self.measure.sign == ">=" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value, judged."""

    tolerance: Tolerance
    value: float

    @property
    def passed(self) -> bool:
        """Whether it lies within its tolerance."""
        return self.tolerance.allows(self.value)

    def __str__(self) -> str:
        measure, limit = self.tolerance.measure, self.tolerance.limit
        if self.passed:
            return "PASS"
        return f"FAIL  {measure} {self.value:.3g}, must be {measure.sign} {limit:g}"


_ROUNDING = "float32 sums in another order differ by a few hundred roundings of 6e-8; a wrong operator by far more"
_EDGE = "such errors turn only pixels whose logit is nearly 0 (see tie_share): none, or one of a large mask"
_HALF = "weights and products with 11 significant bits (5e-4 each), averaged over hundreds of terms"

_BRAIN = "weights and products with 8 significant bits (4e-3 each), averaged over hundreds of terms"

COARSENESS = ("fp32", "fp16", "bf16")  # from fine to coarse

TOLERANCES = (
    Tolerance("fp32", Scope.STAGE, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.SHARE_OF_MAX, 1e-4, _ROUNDING),
    Tolerance("fp32", Scope.MASKS, Measure.IOU_WORST, 0.999, _EDGE),
    Tolerance(
        "fp32", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.0005, "a twentieth of a point; published tables show 0.01"
    ),
    Tolerance("fp16", Scope.STAGE, Measure.RELATIVE_L2, 1e-2, _HALF),
    Tolerance(
        "fp16", Scope.MASKS, Measure.IOU_WORST, 0.98, "small masks have few pixels, and edges move by one of them"
    ),
    Tolerance("fp16", Scope.MASKS, Measure.IOU_MEAN, 0.995, "what half precision may cost the masks as a whole"),
    Tolerance(
        "fp16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "a fifth of a point, below what two trainings differ by"
    ),
    Tolerance("bf16", Scope.STAGE, Measure.RELATIVE_L2, 2e-2, _BRAIN),
    Tolerance(
        "bf16", Scope.MASKS, Measure.IOU_WORST, 0.9, "small masks have few pixels, and edges move by one or two of them"
    ),
    Tolerance("bf16", Scope.MASKS, Measure.IOU_MEAN, 0.99, "three bits less than half, and so twice its loss"),
    Tolerance(
        "bf16", Scope.DATA, Measure.GIOU_DIFFERENCE, 0.002, "as for half precision: what moves is edges, to either side"
    ),
)


def tolerances(precision: str, scope: Scope, stage: Stage | None = None) -> tuple[Tolerance, ...]:
    """The limits for a precision and scope, of one stage where that is the scope."""
    return tuple(
        tolerance
        for tolerance in TOLERANCES
        if tolerance.precision == precision
        and tolerance.scope is scope
        and (stage is None or stage in tolerance.stages)
    )


def tie_share(limits: tuple[Tolerance, ...]) -> float:
    """Below which share of its maximum a mask's logit is a tie: the logits' own tolerance lets it take either sign.

    Without such a tolerance (half precision, whose limits on IoU are made for flipped edges) there are no ties.
    """
    return next((limit.limit for limit in limits if limit.measure is Measure.SHARE_OF_MAX), 0.0)


def judge(values: dict[Measure, float], limits: tuple[Tolerance, ...]) -> tuple[Verdict, ...]:
    """Hold measured values against their limits.

    Raises:
        KeyError: a limit is set for something that was not measured.
    """
    return tuple(Verdict(limit, values[limit.measure]) for limit in limits)
