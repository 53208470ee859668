"""Statistics of repeated times: percentiles, and 95% intervals of medians by order statistics.

The interval of a median reaches from the k-th smallest to the k-th largest value; k is the largest that holds the
median with 95% whatever the distribution (sign test). Of five values or fewer it is their range, which holds the median
with a probability of 1 - 2^(1-n): 94% for five, 75% for three. Rounds that drift are not independent, so the interval
of a time is too narrow for them; ratios are taken round by round, where a drift cancels.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from msgspec import Struct

_TAIL = 0.025  # on each side of a 95% interval
_LEAST_MS = 1e-9  # a clock may read 0 for a short span, and ratios need a divisor


class Ratio(Struct, frozen=True):
    """How many times faster than the first runner: the median over rounds and its 95% interval."""

    median: float
    low: float
    high: float


class Summary(Struct, frozen=True):
    """Percentiles of times in milliseconds, and the 95% interval of the median."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float


def summarise(times_ms: Sequence[float]) -> Summary:
    """Percentiles of at least one time, linear between the two nearest."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return Summary(p50, p90, p99, *median_interval(times_ms))


def paired_ratio(reference_ms: Sequence[float], times_ms: Sequence[float]) -> Ratio:
    """Reference times over times, one of each a round, in the same order of rounds."""
    ratios = np.maximum(reference_ms, _LEAST_MS) / np.maximum(times_ms, _LEAST_MS)
    return Ratio(float(np.median(ratios)), *median_interval(ratios.tolist()))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the median of at least one value."""
    ordered, count = sorted(values), len(values)
    rank = ways = 1  # of the 2^n ways to lie above or below the median, those with fewer than `rank` values below it
    while ways + comb(count, rank) <= _TAIL * 2**count:
        ways += comb(count, rank)
        rank += 1
    return ordered[rank - 1], ordered[-rank]
