"""Contrast stretch: maps raster values of any type to 8 bits."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadInputError

Values = npt.NDArray[Any]
_PERCENTILES = (2, 98)


class Method(Enum):
    """How the two values that become 0 and 255 are found."""

    AUTO, NONE, RANGE, SIGMA, DECIBEL = "auto", "none", "MIN,MAX", "sigma:N", "db"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A contrast stretch.

    Attributes:
        method: AUTO keeps 8-bit values and takes the 2nd and 98th percentile of others.
        low, high: the range of RANGE.
        deviations: standard deviations on each side of the mean, for SIGMA.
    """

    method: Method = Method.AUTO
    low: float = 0
    high: float = 255
    deviations: float = 0

    @classmethod
    def parse(cls, text: str) -> "Stretch":
        """Return the stretch that ``--stretch`` names: auto, none, db, ``MIN,MAX`` or ``sigma:N``.

        Raises:
            BadInputError: the text is none of these.
        """
        try:
            if text in ("auto", "none", "db"):
                return cls(Method(text))
            if text.startswith("sigma:") and 0 < (deviations := float(text.removeprefix("sigma:"))) < math.inf:
                return cls(Method.SIGMA, deviations=deviations)
            low, high = map(float, text.split(","))
            if -math.inf < low < high < math.inf:
                return cls(Method.RANGE, low, high)
        except ValueError:
            pass
        raise BadInputError(f"'{text}' is not a stretch: use auto, none, MIN,MAX (e.g. 0,3000), sigma:N or db")

    def name_for(self, dtype: np.dtype[Any]) -> str:
        """Return the name of what is done to values of a type."""
        if self.method is Method.AUTO:
            return "none" if dtype == np.uint8 else "2-98 percent"
        names = {
            Method.DECIBEL: "dB, 2-98 percent",
            Method.RANGE: f"{self.low:g},{self.high:g}",
            Method.SIGMA: f"sigma:{self.deviations:g}",
        }
        return names.get(self.method, str(self.method.value))

    def prepare(self, values: Values, usable: npt.NDArray[np.bool_]) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Convert values to dB if the stretch says so; return them and which of them can be used."""
        if values.dtype.kind == "f":
            usable = usable & np.isfinite(values)
        if self.method is not Method.DECIBEL:
            return values, usable
        usable = usable & (values > 0)
        return 10 * np.log10(values, where=usable, out=np.zeros(values.shape)), usable

    def limits(self, sample: Values) -> tuple[float, float]:
        """Return the values that become 0 and 255, for a sample of the usable values of a whole band."""
        if self.method is Method.RANGE:
            return self.low, self.high
        if self.method is Method.NONE:
            return 0.0, 255.0
        if not sample.size:
            return 0.0, 0.0
        sample = sample.astype(np.float64)
        if self.method is Method.SIGMA:
            margin = self.deviations * sample.std()
            return float(sample.mean() - margin), float(sample.mean() + margin)
        low, high = (float(value) for value in np.percentile(sample, _PERCENTILES))
        # A band of few values, e.g. of classes, may have the same value in both places.
        return (low, high) if low < high else (float(sample.min()), float(sample.max()))


def to_8_bits(values: Values, limits: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Map values linearly so that the limits become 0 and 255; values beyond are clipped, and flat bands become 0."""
    if values.dtype == np.uint16:
        return np.take(_scaled(np.arange(2**16), *limits), values)
    return _scaled(values, *limits)


def _scaled(values: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    clipped = np.clip(np.nan_to_num(values.astype(np.float64)), low, high)
    scaled: npt.NDArray[np.uint8] = np.rint((clipped - low) * (255 / (high - low))).astype(np.uint8)
    return scaled
