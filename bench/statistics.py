"""Figures of repeated timings: percentiles, ratios by round with their spread, and when a warm-up is over."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of timings in milliseconds, linear between the two nearest; ``count`` says what they rest on."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    count: int

    @classmethod
    def of(cls, timings_ms: Sequence[float]) -> "Summary":
        """Summarise at least one timing."""
        p50, p90, p99 = (float(value) for value in np.percentile(timings_ms, (50, 90, 99)))
        return cls(p50, p90, p99, float(np.mean(timings_ms)), float(np.min(timings_ms)), len(timings_ms))

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
    """

    median: float
    p10: float
    p90: float
    rounds: int

    @classmethod
    def of(cls, reference_ms: Sequence[float], contender_ms: Sequence[float]) -> "Ratio":
        """From one time of each per round, in the same order of rounds."""
        ratios = [slow / fast for slow, fast in zip(reference_ms, contender_ms, strict=True)]
        p10, median, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
        return cls(median, p10, p90, len(ratios))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


STABLE_PASSES = 3
STABLE_SPREAD = 0.10


def is_stable(timings_ms: Sequence[float]) -> bool:
    """Whether the last three timings lie within 10% of the shortest of them."""
    last = timings_ms[-STABLE_PASSES:]
    return len(last) == STABLE_PASSES and max(last) <= (1 + STABLE_SPREAD) * min(last)
