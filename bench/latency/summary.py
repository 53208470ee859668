"""Figures of repeated timings: percentiles and ratios by round, how sure they are, and when a warm-up is over.

The intervals. Values are resampled with replacement, the figure is taken of every resample, and the middle 95% of
these are the interval: the percentile bootstrap. By itself it is too narrow here for two reasons, and each widens it,
in ratio about the estimate because times are positive:

- Few values. Of three rounds it holds the truth three times in four. The factor is that of a mean's interval:
  Student's t of n - 1 degrees over the normal quantile, and sqrt(n / (n - 1)) for resamples that vary too little.
- Values in a row resemble each other, since a machine drifts. The factor is sqrt((1 + r) / (1 - r)), r being the
  correlation of neighbours, corrected for how far short of it few values fall.

A round that was disturbed stands far out. It may lie within the interval, but what the factors add beyond it is
measured by the bulk of the values, so that one such round among five does not make an interval that says nothing.

``tests/test_bench_statistics.py`` draws rounds that drift and counts: 95% and more of two runs agree, and 90% and more
of the intervals hold the truth. What no interval can hold is a machine that changes between two runs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_SEED = 0
_MIDDLE = (2.5, 97.5)
_NORMAL_QUANTILE = 1.959964
# Neighbours this alike tell next to nothing new: more would make the interval as wide as one likes.
_MOST_ALIKE = 0.8
# Taken where there are too few values to see it.
_FEWEST_FOR_CORRELATION = 8
_UNSEEN_CORRELATION = 0.3
# Standard deviations, of a normal distribution with this median absolute deviation, that values stand out from.
_BULK, _DEVIATIONS = 3.0, 1.4826
_FEWEST_FOR_BULK = 5
_LEAST_MS = 1e-9  # a clock may not see a short span at all, and ratios need something to divide by


@dataclass(frozen=True, slots=True)
class Interval:
    """Between the two lies the truth with 95%, as far as the values can tell. A single one tells nothing and stands at
    both ends."""

    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Whether one value may lie in both."""
        return self.low <= other.high and other.low <= self.high


def intervals_of(values: Sequence[float], percentiles: Sequence[float]) -> tuple[Interval, ...]:
    """The interval of each percentile of positive values that were taken in this order.

    The same values give the same intervals. Of n values a percentile beyond 100 (1 - 1/n) is hardly more than their
    maximum, and so is the end of its interval.
    """
    known = np.maximum(np.asarray(values, np.float64), _LEAST_MS)
    drawn = np.random.default_rng(_SEED).integers(0, len(known), (RESAMPLES, len(known)))
    estimates = np.percentile(known, percentiles)
    low, high = np.percentile(np.percentile(known[drawn], percentiles, axis=1), _MIDDLE, axis=1)
    reach = np.maximum(np.log([estimates / low, high / estimates]), 0)
    logs = np.log(known)
    middle, bulk = np.median(logs), _bulk_of(logs)
    reach += (_widening(np.clip(logs, middle - bulk, middle + bulk)) - 1) * np.minimum(reach, bulk)
    lows, highs = estimates / np.exp(reach[0]), estimates * np.exp(reach[1])
    return tuple(Interval(float(low), float(high)) for low, high in zip(lows, highs, strict=True))


def _bulk_of(values: npt.NDArray[np.float64]) -> float:
    """How far from the median values may lie before they stand out; of very few none does."""
    if len(values) < _FEWEST_FOR_BULK:
        return math.inf
    return _BULK * _DEVIATIONS * float(np.median(np.abs(values - np.median(values))))


def _widening(values: npt.NDArray[np.float64]) -> float:
    """How much wider than the plain bootstrap's an interval of these values has to be; see the head of this file."""
    count = len(values)
    if count < 2:
        return 1.0
    few = _student_quantile(count - 1) / _NORMAL_QUANTILE * math.sqrt(count / (count - 1))
    alike = _correlation_of_neighbours(values)
    return few * math.sqrt((1 + alike) / (1 - alike))


def _student_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t: exact for 1 and 2 degrees, else Cornish and Fisher's series (0.5% off at 3)."""
    if degrees <= 2:
        return 12.7062 if degrees == 1 else 4.3027
    z, n = _NORMAL_QUANTILE, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _correlation_of_neighbours(values: npt.NDArray[np.float64]) -> float:
    """Of a value and the next, between 0 and 0.8.

    The sample's own falls short by about (1 + 3 r) / n, since its mean follows the drift (Kendall 1954).
    """
    count = len(values)
    if count < _FEWEST_FOR_CORRELATION:
        return _UNSEEN_CORRELATION
    deviations = values - values.mean()
    square = float(deviations @ deviations)
    if square == 0:
        return 0.0
    seen = float(deviations[1:] @ deviations[:-1]) / square
    return min(max((seen + 1 / count) / (1 - 3 / count), 0.0), _MOST_ALIKE)


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of timings in milliseconds, linear between the two nearest; ``count`` says what they rest on.

    ``p50_low_ms`` and ``p50_high_ms`` are the ends of the 95% interval of ``p50_ms``, and so on.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    count: int
    p50_low_ms: float
    p50_high_ms: float
    p90_low_ms: float
    p90_high_ms: float
    p99_low_ms: float
    p99_high_ms: float

    @classmethod
    def of(cls, timings_ms: Sequence[float]) -> "Summary":
        """Summarise at least one timing; their order is that in which they were taken."""
        percentiles = (50, 90, 99)
        p50, p90, p99 = (float(value) for value in np.percentile(timings_ms, percentiles))
        ends = [end for interval in intervals_of(timings_ms, percentiles) for end in (interval.low, interval.high)]
        return cls(p50, p90, p99, float(np.mean(timings_ms)), float(np.min(timings_ms)), len(timings_ms), *ends)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster than the reference, round by round.

    Contenders take turns within each round, so that what slows the machine for a while slows both and leaves their
    ratio; absolute times drift.

    Attributes:
        median: over rounds.
        p10, p90: between them lie 80% of the rounds.
        rounds: how many.
        low, high: 95% interval of the median: another run's overlaps it.
    """

    median: float
    p10: float
    p90: float
    rounds: int
    low: float
    high: float

    @classmethod
    def of(cls, reference_ms: Sequence[float], contender_ms: Sequence[float]) -> "Ratio":
        """From one time of each per round, in the same order of rounds."""
        ratios = [slow / fast for slow, fast in zip(reference_ms, contender_ms, strict=True)]
        p10, median, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
        (interval,) = intervals_of(ratios, (50,))
        return cls(median, p10, p90, len(ratios), interval.low, interval.high)

    @property
    def interval(self) -> Interval:
        """Of the median."""
        return Interval(self.low, self.high)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def agree(one: Ratio, other: Ratio) -> bool:
    """Whether two runs tell the same: their intervals overlap."""
    return one.interval.overlaps(other.interval)


STABLE_PASSES = 3
STABLE_SPREAD = 0.10


def is_stable(timings_ms: Sequence[float]) -> bool:
    """Whether the last three timings lie within 10% of the shortest of them."""
    last = timings_ms[-STABLE_PASSES:]
    return len(last) == STABLE_PASSES and max(last) <= (1 + STABLE_SPREAD) * min(last)
