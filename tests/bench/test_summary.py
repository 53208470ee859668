"""Intervals are honest: two runs of one truth agree, and the truth lies within, also after few rounds that drift."""

import numpy as np
import numpy.typing as npt
import pytest

from rsrefseg.bench.latency.summary import Interval, Ratio, Summary, agree, intervals_of

TRUE_RATIO = 4.0
RUNS = 300


def drifting_rounds(runs: int, rounds: int, left: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Times (runs, rounds) of two contenders: 5% noise each on a drift of 20% that keeps 0.8 of itself from round to
    round, of which the faster one feels ``left`` less, so that the ratio drifts too."""
    random = np.random.default_rng(rounds)
    drift = np.empty((runs, rounds))
    drift[:, 0] = random.normal(0, 0.2, runs)
    for number in range(1, rounds):
        drift[:, number] = 0.8 * drift[:, number - 1] + random.normal(0, 0.2 * 0.6, runs)
    noise = random.normal(0, 0.05, (2, runs, rounds))
    return 40 * np.exp(drift + noise[0]), 40 / TRUE_RATIO * np.exp((1 - left) * drift + noise[1])


@pytest.mark.parametrize("left", [0.0, 0.15], ids=["the drift hits both alike", "one feels 85% of it"])
@pytest.mark.parametrize("rounds", [3, 5, 10, 30])
def test_two_runs_agree_and_the_truth_lies_within(rounds: int, left: float) -> None:
    slow, fast = drifting_rounds(RUNS, rounds, left)
    ratios = [Ratio.of(list(one), list(other)) for one, other in zip(slow, fast, strict=True)]
    covered = [ratio.low <= TRUE_RATIO <= ratio.high for ratio in ratios]
    agreeing = [agree(one, other) for one, other in zip(ratios[::2], ratios[1::2], strict=True)]
    assert np.mean(covered) >= 0.9
    assert np.mean(agreeing) >= 0.95


def test_intervals_narrow_with_more_rounds() -> None:
    slow, fast = drifting_rounds(20, 100, 0.0)
    widths = [
        np.median(
            [Ratio.of(list(one[:count]), list(other[:count])).high for one, other in zip(slow, fast, strict=True)]
        )
        for count in (3, 5, 10, 100)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(TRUE_RATIO, rel=0.03)  # 5% noise in each, over sqrt(100)


def test_a_difference_larger_than_the_noise_is_told() -> None:
    """An interval that holds everything would agree with everything."""
    slow, fast = drifting_rounds(40, 10, 0.0)
    ratios = [Ratio.of(list(one), list(other)) for one, other in zip(slow, fast, strict=True)]
    half_again = [Ratio.of(list(1.5 * one), list(other)) for one, other in zip(slow, fast, strict=True)]
    assert np.mean([agree(one, other) for one, other in zip(ratios, half_again, strict=True)]) < 0.1


def test_the_same_values_give_the_same_intervals_around_their_figures() -> None:
    timings = [float(value) for value in np.random.default_rng(3).lognormal(3, 0.2, 40)]
    summary = Summary.of(timings)
    assert summary == Summary.of(timings)
    assert summary.p50_low_ms < summary.p50_ms < summary.p50_high_ms
    assert summary.p90_low_ms < summary.p90_ms < summary.p90_high_ms
    assert summary.p99_low_ms < summary.p99_ms < summary.p99_high_ms
    assert summary.as_dict()["p50_high_ms"] == summary.p50_high_ms


def test_a_disturbed_round_does_not_make_an_interval_that_says_nothing() -> None:
    """It may lie within, but the interval does not go far beyond."""
    (interval,) = intervals_of([1.0, 1.02, 0.99, 20.0, 1.01], (50,))
    assert 0.8 < interval.low < 1 < interval.high < 25


def test_values_that_drift_are_worth_less_than_as_many_in_any_order() -> None:
    drifting = np.exp(np.linspace(0, 1, 30))
    shuffled = np.random.default_rng(0).permutation(drifting)
    ((of_drift,), (of_shuffled,)) = (intervals_of(list(values), (50,)) for values in (drifting, shuffled))
    assert of_drift.high - of_drift.low > 2 * (of_shuffled.high - of_shuffled.low)


def test_constant_and_lonely_values_have_no_width() -> None:
    assert intervals_of([7.0], (50, 99)) == (Interval(7.0, 7.0),) * 2
    assert intervals_of([2.0] * 6, (50,)) == (Interval(2.0, 2.0),)
    assert Ratio.of([8.0, 8.0], [2.0, 2.0]).interval == Interval(4.0, 4.0)


def test_intervals_that_touch_overlap() -> None:
    assert Interval(1, 2).overlaps(Interval(2, 3))
    assert Interval(2, 3).overlaps(Interval(1, 2))
    assert Interval(1, 4).overlaps(Interval(2, 3))
    assert not Interval(1, 2).overlaps(Interval(2.5, 3))
