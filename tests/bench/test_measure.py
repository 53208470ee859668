"""Interleaved rounds and start-ups of recording runners, and statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from rsrefseg.bench.latency import measure as module
from rsrefseg.bench.latency import scenarios
from rsrefseg.bench.latency.measure import LEAST_ROUNDS, MAX_WARM_UP_PASSES, is_stable, measure, timed_pass, warm_up
from rsrefseg.bench.latency.runner import PHRASE_STAGES, Runner
from rsrefseg.bench.latency.runners import EngineRunner, make_runner
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, NEXT_PHRASE, SCENARIOS, STAGES, TOTAL, Workload
from rsrefseg.bench.latency.startup import Startup, measure_startups
from rsrefseg.bench.latency.summary import median_interval, paired_ratio, summarise
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError
from tests.support.exported import Exported


class Recorder(Runner):
    """Returns the reference and records its calls."""

    open = load = close = Mock()

    def __init__(self, bundle: Bundle, name: str, calls: list[str]) -> None:
        super().__init__(bundle)
        self.name, self.calls = name, calls
        self.truth = load_reference(bundle)[0].tensors

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> dict[str, Any]:
        contract = self.bundle.manifest.stages[stage].contract
        assert all(spec.name in tensors for spec in contract.inputs)
        self.calls.append(f"{self.name} {stage}")
        return {spec.name: self.truth[spec.name] for spec in contract.outputs}


@pytest.fixture
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture
def workload(bundle: Bundle) -> Workload:
    return scenarios.workload_of(load_reference(bundle))


@pytest.fixture
def runner(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(module, "REWARM_BELOW_MS", 0.0)
    return Recorder(bundle, "a", [])


def encoded_images(calls: list[str]) -> list[str]:
    return [call.split()[0] for call in calls if call.endswith(Stage.SAM_ENCODER)]


def test_runners_alternate_and_warm_up(runner: Recorder, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = runner.calls
    other = Recorder(runner.bundle, "b", calls)
    done: list[int] = []
    times = measure([runner, other], (FIRST_PHRASE, NEXT_PHRASE), workload, 4, 1.0, done.append)
    assert encoded_images(calls) == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert done == [1, 2, 3, 4], "each round is reported"
    assert {key: len(values) for key, values in times.items()} == {
        (name, scenario.name, TOTAL): 4 for name in "ab" for scenario in (FIRST_PHRASE, NEXT_PHRASE)
    }
    calls.clear()
    monkeypatch.setattr(module, "REWARM_BELOW_MS", 1e6)
    times = measure([runner], (FIRST_PHRASE,), workload, 1, 1.0)
    assert len(encoded_images(calls)) == 2
    assert len(times["a", FIRST_PHRASE.name, TOTAL]) == 1


@pytest.mark.parametrize(("rounds", "minutes", "done"), [(7, 10.0, 7), (7, 0.0, LEAST_ROUNDS), (3, 0.0, 3)])
def test_rounds_end_with_the_time(runner: Recorder, workload: Workload, rounds: int, minutes: float, done: int) -> None:
    assert len(measure([runner], (FIRST_PHRASE,), workload, rounds, minutes)["a", FIRST_PHRASE.name, TOTAL]) == done


def test_a_next_phrase_runs_no_image_stage_and_is_another_phrase(runner: Recorder, workload: Workload) -> None:
    spans_ms, features = timed_pass(runner, FIRST_PHRASE, workload, 0, None)
    assert runner.calls == [f"a {stage}" for stage in (Stage.SIGLIP_VISION, Stage.SAM_ENCODER, *PHRASE_STAGES)]
    runner.calls.clear()
    timed_pass(runner, NEXT_PHRASE, workload, 1, features)
    assert runner.calls == [f"a {stage}" for stage in PHRASE_STAGES]
    assert tuple(spans_ms) == (TOTAL,)
    assert set(timed_pass(runner, STAGES, workload, 0, None)[0]) == set(STAGES.spans)
    assert workload.some_phrases(0, 1) != workload.some_phrases(1, 1)
    assert workload.some_phrases(len(workload.phrases), 1) == workload.some_phrases(0, 1)


def test_warm_up_that_never_settles_ends(runner: Recorder, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_stable", lambda times_ms: False)
    assert warm_up(runner, (FIRST_PHRASE, NEXT_PHRASE), workload) is False
    assert len(encoded_images(runner.calls)) == MAX_WARM_UP_PASSES
    assert runner.calls[-3:] == [f"a {stage}" for stage in PHRASE_STAGES]


@pytest.mark.parametrize(
    ("times_ms", "stable"),
    [([10.0, 10.0], False), ([99.0, 10.0, 10.5, 11.0], True), ([10.0, 10.0, 11.1], False), ([9.0, 20.0, 20.0], False)],
)
def test_three_times_within_a_tenth_are_stable(times_ms: list[float], stable: bool) -> None:
    assert is_stable(times_ms) is stable


def test_an_engine_encodes_every_phrase(bundle: Bundle, workload: Workload) -> None:
    """The Segmenter's cache contains none of them."""
    runner = make_runner("onnxruntime", bundle, None)
    assert isinstance(runner, EngineRunner)
    encoded: list[int] = []
    encode_text = runner.engine.encode_text

    def counting(input_ids: Any, token_mask: Any) -> list[Any]:
        encoded.append(len(input_ids))
        return encode_text(input_ids, token_mask)

    runner.engine.encode_text = counting  # type: ignore[method-assign]
    features = runner.encode(workload.image)
    for scenario in (one for one in SCENARIOS if not one.by_stage):
        encoded.clear()
        timed_pass(runner, scenario, workload, 3, features)
        timed_pass(runner, scenario, workload, 3, features)
        assert sum(encoded) == 2 * scenario.phrases
    runner.close()


@pytest.mark.parametrize("known", [("the ship", "a large harbour in the north"), ("ship",)])
def test_different_phrases_begin_with_the_known_ones_and_never_repeat(known: tuple[str, ...]) -> None:
    phrases = scenarios.different_phrases(known, 64)
    assert phrases[: len(known)] == known
    assert len(set(phrases)) == 64
    assert {word for phrase in phrases for word in phrase.split()} <= {word for one in known for word in one.split()}
    assert scenarios.different_phrases(known, 1) == known[:1]


def test_scenarios_are_chosen_by_name_and_keep_their_order() -> None:
    assert scenarios.parse_scenarios("") == SCENARIOS
    assert scenarios.parse_scenarios("stages, next_phrase") == (FIRST_PHRASE, NEXT_PHRASE, STAGES)
    with pytest.raises(BadInputError, match="nonsense"):
        scenarios.parse_scenarios("next_phrase,nonsense")


def test_only_the_first_of_interleaved_starts_predicts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tests/slow/test_bench.py`` starts real processes."""
    loads_ms = {"a": iter((30.0, 10.0, 20.0)), "b": iter((3.0, 2.0, 1.0))}
    started: list[tuple[str, bool]] = []
    said: list[str] = []

    def start(name: str, bundle: Bundle, run: Path | None, predict: bool) -> Startup:
        started.append((name, predict))
        if name == "bad":
            return Startup(error="no")
        load_ms = next(loads_ms[name])
        first_answer_ms, memory_mib = (99.0, 500.0) if predict else (None, 400.0)
        return Startup(load_ms + 1, load_ms + 2, load_ms, first_answer_ms=first_answer_ms, peak_memory_mib=memory_mib)

    monkeypatch.setattr("rsrefseg.bench.latency.startup.start", start)
    first, bad, second = measure_startups(["a", "bad", "b"], bundle, None, said.append)
    assert started == [("a", True), ("bad", True), ("b", True), ("a", False), ("b", False), ("a", False), ("b", False)]
    assert [line.partition(":")[0] for line in said] == [name for name, _ in started]
    assert first == Startup(21.0, 22.0, 20.0, 10.0, 30.0, 99.0, 500.0)
    assert (second.load_ms, second.load_least_ms, second.load_most_ms) == (2.0, 1.0, 3.0)
    assert bad.error == "no"


def drifting_rounds(count: int, seed: int) -> tuple[list[float], list[float]]:
    """Return times of a runner and of one four times as fast, with 5% noise each and a common drift of 20%."""
    random = np.random.default_rng(seed)
    drift = np.cumsum(random.normal(0, 0.2 / np.sqrt(count), count))
    slow, fast = np.exp(drift + random.normal(0, 0.05, (2, count)))
    return (40 * slow).tolist(), (10 * fast).tolist()


@pytest.mark.parametrize("count", [6, 10, 30])
def test_intervals_hold_the_true_ratio_in_spite_of_drift(count: int) -> None:
    ratios = [paired_ratio(*drifting_rounds(count, seed)) for seed in range(40)]
    assert np.mean([one.low <= 4.0 <= one.high for one in ratios]) >= 0.95
    assert all(one.low <= one.median <= one.high for one in ratios)


def test_manually_computed_statistics() -> None:
    summary = summarise([float(value) for value in range(101)])
    assert (summary.p50_ms, summary.p90_ms, summary.p99_ms) == (50, 90, 99)
    assert summary.p50_low_ms < 50 < summary.p50_high_ms
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0), "the interval of few values is their range"
    assert median_interval([5.0, 1.0, 2.0, 9.0, 3.0]) == (1.0, 9.0)
    assert median_interval([7.0]) == (7.0, 7.0)
    assert np.isfinite(paired_ratio([0.0], [0.0]).median), "a clock may read zero"
