"""Statistics of repeated times: percentiles, and 95% intervals of medians by order statistics.

The interval of a median is from the k-th smallest to the k-th largest value, with the largest k for which it contains
the median with 95% probability for any distribution (sign test). For five values or fewer it is their range, which
contains the median with probability 1 - 2^(1-n): 94% for five, 75% for three. If the machine drifts, rounds are not
independent and intervals of times are too narrow; ratios are computed by round, where a drift cancels.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from msgspec import Struct

_TAIL = 0.025  # probability on each side of a 95% interval
_LEAST_MS = 1e-9  # lower bound for divisors: a clock may read 0 for a short span


class Ratio(Struct, frozen=True):
    """Speed relative to the first runner: median over rounds and its 95% interval."""

    median: float
    low: float
    high: float


class Summary(Struct, frozen=True):
    """Percentiles of times in ms, and the 95% interval of the median."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float


def summarise(times_ms: Sequence[float]) -> Summary:
    """Compute percentiles of at least one time, with linear interpolation."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return Summary(p50, p90, p99, *median_interval(times_ms))


def paired_ratio(reference_ms: Sequence[float], times_ms: Sequence[float]) -> Ratio:
    """Compute the ratio of reference times to times, paired by round."""
    ratios = np.maximum(reference_ms, _LEAST_MS) / np.maximum(times_ms, _LEAST_MS)
    return Ratio(float(np.median(ratios)), *median_interval(ratios.tolist()))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the median of at least one value."""
    ordered, count = sorted(values), len(values)
    rank = ways = 1  # of the 2^n ways to lie above or below the median, those with fewer than `rank` values below it
    while ways + comb(count, rank) <= _TAIL * 2**count:
        ways += comb(count, rank)
        rank += 1
    return ordered[rank - 1], ordered[-rank]
