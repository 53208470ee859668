"""Referring-segmentation metrics under the two published protocols, in numpy alone."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ..data.masks import BoolMask, resize_nearest

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
RMSIN_SIZE = 480


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far one prediction covers its truth, under a protocol.

    Attributes:
        iou: intersection over union, in [0, 1]; of an empty union what ``Protocol`` decides.
        intersection: pixels in both, at the protocol's size.
        union: pixels in either, at the protocol's size.
    """

    iou: float
    intersection: int
    union: int


class Protocol(StrEnum):
    """How a sample's IoU is taken and compared. Figures of different protocols must not stand in one column.

    ``RSREFSEG``: masks at the image's own size; a sample counts for Pr@t where IoU > t. Where truth and prediction are
    both empty, IoU is 0/0 in the published code; here it is 1, the convention of benchmarks with expressions that have
    no target: to find nothing where nothing is meant is right. cIoU is not touched, since such a sample adds no pixel.

    ``RMSIN``: both masks at 480x480 (nearest); a sample counts for Pr@t where IoU >= t; where both are empty, IoU is 0,
    as in its published code. On data with expressions that refer to nothing it punishes the right answer.
    """

    RSREFSEG = "rsrefseg"
    RMSIN = "rmsin"

    def overlap(self, prediction: BoolMask, truth: BoolMask) -> Overlap:
        """Compare one prediction, (H, W) bool at the image's own size, with its truth, (H, W) bool.

        Raises:
            ValueError: the masks are not bool, not two-dimensional, or of different shapes.
        """
        if prediction.shape != truth.shape or prediction.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must be one (H, W)")
        if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
            raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")
        if self is Protocol.RMSIN:
            prediction, truth = (resize_nearest(mask, RMSIN_SIZE, RMSIN_SIZE) for mask in (prediction, truth))
        intersection = int(np.count_nonzero(prediction & truth))
        union = int(np.count_nonzero(prediction | truth))
        return Overlap(self.iou(intersection, union), intersection, union)

    def iou(self, intersection: int, union: int) -> float:
        """Intersection over union, the empty union decided as above."""
        if union == 0:
            return 0.0 if self is Protocol.RMSIN else 1.0
        return intersection / union

    def passes(self, iou: float, threshold: float) -> bool:
        """Whether a sample counts for Pr@threshold."""
        return iou >= threshold if self is Protocol.RMSIN else iou > threshold


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What one class scored; fractions in [0, 1]."""

    gIoU: float  # noqa: N815 (the field's word)
    cIoU: float  # noqa: N815
    samples: int


@dataclass(frozen=True, slots=True)
class MetricsResult:
    """What a set of samples scored; every score is a fraction in [0, 1].

    Attributes:
        protocol: under which it was taken.
        samples: how many.
        gIoU: mean of the samples' IoU.
        cIoU: sum of intersections over sum of unions.
        precision_at: share of samples that pass each threshold.
        per_class: the same by class, for samples whose class was given; sorted by name.
    """

    protocol: Protocol
    samples: int
    gIoU: float  # noqa: N815
    cIoU: float  # noqa: N815
    precision_at: dict[float, float]
    per_class: dict[str, ClassResult]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the thresholds as ``Pr@0.5`` and so on."""
        return {
            "protocol": self.protocol.value,
            "samples": self.samples,
            "gIoU": self.gIoU,
            "cIoU": self.cIoU,
            **{f"Pr@{threshold}": share for threshold, share in self.precision_at.items()},
            "per_class": {name: asdict(result) for name, result in self.per_class.items()},
        }


@dataclass(slots=True)
class _Tally:
    """Sums over samples. Passes are counted, not IoUs kept, so that memory does not grow with the data set."""

    samples: int = 0
    iou_sum: float = 0.0
    intersection: int = 0
    union: int = 0
    passed: dict[float, int] = field(default_factory=lambda: dict.fromkeys(PRECISION_THRESHOLDS, 0))


class ReferringMetrics:
    """Takes predictions one by one and gives gIoU, cIoU and Pr@0.5 to Pr@0.9.

    Args:
        protocol: which published protocol to follow.
    """

    def __init__(self, protocol: Protocol = Protocol.RSREFSEG) -> None:
        self.protocol = Protocol(protocol)
        self._total = _Tally()
        self._classes: dict[str, _Tally] = {}

    def update(self, prediction: BoolMask, truth: BoolMask, category: str | None = None) -> float:
        """Add one sample.

        Args:
            prediction: (H, W) bool, at the image's own size.
            truth: (H, W) bool.
            category: class of the object, for the scores by class.

        Returns:
            This sample's IoU under the protocol.

        Raises:
            ValueError: the masks are not bool, not two-dimensional, or of different shapes.
        """
        overlap = self.protocol.overlap(prediction, truth)
        self.add(overlap, category)
        return overlap.iou

    def add(self, overlap: Overlap, category: str | None = None) -> None:
        """Add one sample that this protocol's ``overlap`` has compared."""
        tallies = [self._total]
        if category is not None:
            tallies.append(self._classes.setdefault(category, _Tally()))
        for tally in tallies:
            tally.samples += 1
            tally.iou_sum += overlap.iou
            tally.intersection += overlap.intersection
            tally.union += overlap.union
            for threshold in PRECISION_THRESHOLDS:
                tally.passed[threshold] += self.protocol.passes(overlap.iou, threshold)

    def result(self) -> MetricsResult:
        """The scores of all samples so far.

        Raises:
            ValueError: there are none.
        """
        total = self._total
        if total.samples == 0:
            raise ValueError("no sample was measured")
        return MetricsResult(
            protocol=self.protocol,
            samples=total.samples,
            gIoU=total.iou_sum / total.samples,
            cIoU=self.protocol.iou(total.intersection, total.union),
            precision_at={threshold: count / total.samples for threshold, count in total.passed.items()},
            per_class={
                name: ClassResult(
                    one.iou_sum / one.samples, self.protocol.iou(one.intersection, one.union), one.samples
                )
                for name, one in sorted(self._classes.items())
            },
        )
