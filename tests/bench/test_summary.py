"""Intervals hold the truth, and are narrow enough to say something."""

import numpy as np
import pytest

from rsrefseg.bench.latency.summary import median_interval, paired_ratio, summarise

TRUE_RATIO = 4.0


def rounds(count: int, seed: int) -> tuple[list[float], list[float]]:
    """Times of two runners with 5% noise each, on a drift of 20% that slows both alike."""
    random = np.random.default_rng(seed)
    drift = np.cumsum(random.normal(0, 0.2 / np.sqrt(count), count))
    slow, fast = np.exp(drift + random.normal(0, 0.05, (2, count)))
    return (40 * slow).tolist(), (40 / TRUE_RATIO * fast).tolist()


@pytest.mark.parametrize("count", [6, 10, 30])
def test_intervals_hold_the_true_ratio_in_spite_of_drift(count: int) -> None:
    ratios = [paired_ratio(*rounds(count, seed)) for seed in range(40)]
    assert np.mean([one.low <= TRUE_RATIO <= one.high for one in ratios]) >= 0.95
    assert all(one.low <= one.median <= one.high for one in ratios)


def test_the_interval_of_few_values_is_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0, 1.0, 2.0, 9.0, 3.0]) == (1.0, 9.0)
    assert median_interval([7.0]) == (7.0, 7.0)


def test_percentiles_worked_out_by_hand() -> None:
    summary = summarise([float(value) for value in range(101)])
    assert (summary.p50_ms, summary.p90_ms, summary.p99_ms) == (50, 90, 99)
    assert summary.p50_low_ms < 50 < summary.p50_high_ms
    assert summary == summarise([float(value) for value in range(101)]), "the same values give the same interval"


def test_ratios_are_paired_by_round_and_survive_a_clock_that_reads_zero() -> None:
    assert paired_ratio([20.0, 40.0, 90.0], [10.0, 10.0, 30.0]).median == 3.0, "of 2, 4, 3; the medians' would be 4"
    assert np.isfinite(paired_ratio([0.0], [0.0]).median)
