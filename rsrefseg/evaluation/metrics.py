"""Metrics of referring segmentation under the two published protocols, computed with numpy only."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ..data.masks import BoolMask, resize_nearest

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
RMSIN_SIZE = 480


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of a predicted mask with the annotated mask, under a protocol.

    Attributes:
        iou: intersection over union, in [0, 1]; ``Protocol`` defines it for an empty union.
        intersection: pixels in both masks, at the protocol's size.
        union: pixels in either mask, at the protocol's size.
        found: whether the predicted mask has a pixel.
        has_target: whether the annotated mask has a pixel.
    """

    iou: float
    intersection: int
    union: int
    found: bool
    has_target: bool


class Protocol(StrEnum):
    """Rules for the IoU of a sample and for Pr@t. Scores of different protocols are not comparable.

    ``RSREFSEG``: masks have the image's size, and a sample counts for Pr@t if IoU > t. If both masks are empty, IoU is
    0/0 in the published code. Here it is 1, as in benchmarks with expressions that have no target. Such a sample does
    not change cIoU, because it adds no pixel.

    ``RMSIN``: both masks are resized to 480x480 (nearest), and a sample counts for Pr@t if IoU >= t. If both are empty,
    IoU is 0, as in the published code, so that a correct prediction of an expression without a target scores 0.
    """

    RSREFSEG = "rsrefseg"
    RMSIN = "rmsin"

    def overlap(self, prediction: BoolMask, truth: BoolMask) -> Overlap:
        """Compare a predicted mask with the annotated mask, both (H, W) bool at the image's size.

        Raises:
            ValueError: the masks are not bool, not two-dimensional, or of different shapes.
        """
        if prediction.shape != truth.shape or prediction.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must be one (H, W)")
        if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
            raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")
        found, has_target = bool(prediction.any()), bool(truth.any())
        if self is Protocol.RMSIN:
            prediction, truth = (resize_nearest(mask, RMSIN_SIZE, RMSIN_SIZE) for mask in (prediction, truth))
        intersection = int(np.count_nonzero(prediction & truth))
        union = int(np.count_nonzero(prediction | truth))
        return Overlap(self.iou(intersection, union), intersection, union, found, has_target)

    def iou(self, intersection: int, union: int) -> float:
        """Return intersection over union; 0 (``RMSIN``) or 1 (``RSREFSEG``) for an empty union."""
        if union == 0:
            return 0.0 if self is Protocol.RMSIN else 1.0
        return intersection / union

    def passes(self, iou: float, threshold: float) -> bool:
        """Return whether a sample counts for Pr@threshold."""
        return iou >= threshold if self is Protocol.RMSIN else iou > threshold


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Scores of one class; fractions in [0, 1]."""

    gIoU: float  # noqa: N815 (the field's word)
    cIoU: float  # noqa: N815
    samples: int


@dataclass(frozen=True, slots=True)
class MetricsResult:
    """Scores of a set of samples; fractions in [0, 1].

    Attributes:
        protocol: evaluation protocol.
        samples: number of samples.
        gIoU: mean IoU of the samples (mIoU in remote-sensing tables).
        cIoU: sum of intersections over sum of unions (oIoU in remote-sensing tables).
        precision_at: fraction of samples that pass each IoU threshold.
        per_class: scores by class, for samples with a class; sorted by name.
        no_target_samples: number of samples whose expression refers to nothing.
        n_acc: share of them with an empty predicted mask; ``None`` without such samples.
        t_acc: share of the other samples with a predicted mask that is not empty; ``None`` without such samples.
    """

    protocol: Protocol
    samples: int
    gIoU: float  # noqa: N815
    cIoU: float  # noqa: N815
    precision_at: dict[float, float]
    per_class: dict[str, ClassResult]
    no_target_samples: int = 0
    n_acc: float | None = None
    t_acc: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, with keys such as ``Pr@0.5`` for the thresholds."""
        return {
            "protocol": self.protocol.value,
            "samples": self.samples,
            "gIoU": self.gIoU,
            "cIoU": self.cIoU,
            **{f"Pr@{threshold}": share for threshold, share in self.precision_at.items()},
            "no_target_samples": self.no_target_samples,
            "N-acc": self.n_acc,
            "T-acc": self.t_acc,
            "per_class": {name: asdict(result) for name, result in self.per_class.items()},
        }


@dataclass(slots=True)
class _Tally:
    """Sums over samples. It counts passes instead of storing IoUs, so that memory use stays constant."""

    samples: int = 0
    iou_sum: float = 0.0
    intersection: int = 0
    union: int = 0
    no_target: int = 0
    right_with_target: int = 0
    right_without: int = 0
    passed: dict[float, int] = field(default_factory=lambda: dict.fromkeys(PRECISION_THRESHOLDS, 0))


class ReferringMetrics:
    """Accumulates predictions and computes gIoU, cIoU and Pr@0.5 to Pr@0.9.

    Args:
        protocol: evaluation protocol.
    """

    def __init__(self, protocol: Protocol = Protocol.RSREFSEG) -> None:
        self.protocol = Protocol(protocol)
        self._total = _Tally()
        self._classes: dict[str, _Tally] = {}

    def update(self, prediction: BoolMask, truth: BoolMask, category: str | None = None) -> float:
        """Add one sample.

        Args:
            prediction: (H, W) bool, predicted mask at the image's size.
            truth: (H, W) bool, annotated mask.
            category: class of the object, for the scores by class.

        Returns:
            The sample's IoU under the protocol.

        Raises:
            ValueError: the masks are not bool, not two-dimensional, or of different shapes.
        """
        overlap = self.protocol.overlap(prediction, truth)
        self.add(overlap, category)
        return overlap.iou

    def add(self, overlap: Overlap, category: str | None = None) -> None:
        """Add the overlap of one sample, from ``overlap`` of the same protocol."""
        tallies = [self._total]
        if category is not None:
            tallies.append(self._classes.setdefault(category, _Tally()))
        for tally in tallies:
            tally.samples += 1
            tally.iou_sum += overlap.iou
            tally.intersection += overlap.intersection
            tally.union += overlap.union
            tally.no_target += not overlap.has_target
            tally.right_with_target += overlap.has_target and overlap.found
            tally.right_without += not (overlap.has_target or overlap.found)
            for threshold in PRECISION_THRESHOLDS:
                tally.passed[threshold] += self.protocol.passes(overlap.iou, threshold)

    def result(self) -> MetricsResult:
        """Return the scores of all samples added so far.

        Raises:
            ValueError: no sample was added.
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
            no_target_samples=total.no_target,
            n_acc=total.right_without / total.no_target if total.no_target else None,
            t_acc=total.right_with_target / (total.samples - total.no_target)
            if total.samples > total.no_target
            else None,
        )
