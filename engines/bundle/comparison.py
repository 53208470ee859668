"""Measures of the difference between two arrays, and between two masks."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .tolerances import Measure


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of a result against its reference; infinite if either contains a value that is not finite.

    Attributes:
        max_abs: largest absolute difference.
        share_of_max: ``max_abs`` over the reference's absolute maximum.
        relative_l2: L2 norm of the difference over that of the reference.
        cosine: cosine similarity of both, in [-1, 1].
    """

    max_abs: float
    share_of_max: float
    relative_l2: float
    cosine: float

    def measures(self) -> dict[Measure, float]:
        """Return the values that have tolerances."""
        return {Measure.SHARE_OF_MAX: self.share_of_max, Measure.RELATIVE_L2: self.relative_l2}

    def worst(self, other: "TensorError") -> "TensorError":
        """Combine two errors: the worse value of each field."""
        return TensorError(
            max(self.max_abs, other.max_abs),
            max(self.share_of_max, other.share_of_max),
            max(self.relative_l2, other.relative_l2),
            min(self.cosine, other.cosine),
        )


def tensor_error(reference: npt.NDArray[Any], result: npt.NDArray[Any]) -> TensorError:
    """Compare two arrays of the same shape, in float64."""
    wanted, found = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return TensorError(math.inf, math.inf, math.inf, -1.0)
    difference = found - wanted
    max_abs = float(np.abs(difference).max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=0.0))
    wanted_norm, found_norm = float(np.linalg.norm(wanted)), float(np.linalg.norm(found))
    if wanted_norm and found_norm:
        cosine = float(np.clip(np.dot(wanted / wanted_norm, found / found_norm), -1.0, 1.0))
    else:
        cosine = 1.0 if wanted_norm == found_norm else 0.0
    return TensorError(max_abs, _share(max_abs, scale), _share(float(np.linalg.norm(difference)), wanted_norm), cosine)


def mask_iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks of the same shape; 1 if both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def _share(error: float, scale: float) -> float:
    if scale:
        return error / scale
    return math.inf if error else 0.0
