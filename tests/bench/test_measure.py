"""Interleaved rounds: who is asked what and when, with runners that record it."""

from collections.abc import Mapping
from typing import Any

import pytest

from rsrefseg.bench.latency import measure as module
from rsrefseg.bench.latency.measure import LEAST_ROUNDS, MAX_WARM_UP_PASSES, is_stable, measure, timed_pass, warm_up
from rsrefseg.bench.latency.runner import PHRASE_STAGES, Runner
from rsrefseg.bench.latency.runners import EngineRunner, make_runner
from rsrefseg.bench.latency.scenarios import (
    FIRST_PHRASE,
    NEXT_PHRASE,
    SCENARIOS,
    STAGES,
    TOTAL,
    Workload,
    different_phrases,
    parse_scenarios,
    workload_of,
)
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError
from tests.support.exported import Exported


class Recorder(Runner):
    """Returns the reference and records who ran what."""

    def __init__(self, bundle: Bundle, name: str, calls: list[str]) -> None:
        super().__init__(bundle)
        self.name, self.calls = name, calls
        self.truth = load_reference(bundle)[0].tensors

    def open(self) -> None: ...

    def load(self) -> None: ...

    def close(self) -> None: ...

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
    return workload_of(load_reference(bundle))


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def runner(bundle: Bundle, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(module, "REWARM_BELOW_MS", 0.0)
    return Recorder(bundle, "a", calls)


def encoded_images(calls: list[str]) -> list[str]:
    return [call.split()[0] for call in calls if call.endswith(Stage.SAM_ENCODER)]


def test_runners_are_interleaved_and_a_fast_one_has_a_pass_that_is_not_counted(
    runner: Recorder, bundle: Bundle, workload: Workload, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Recorder(bundle, "b", calls)
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
def test_rounds_end_with_the_time_but_not_before_the_least(
    runner: Recorder, workload: Workload, rounds: int, minutes: float, done: int
) -> None:
    assert len(measure([runner], (FIRST_PHRASE,), workload, rounds, minutes)["a", FIRST_PHRASE.name, TOTAL]) == done


def test_a_next_phrase_runs_no_image_stage_and_is_another_phrase(
    runner: Recorder, workload: Workload, calls: list[str]
) -> None:
    spans_ms, features = timed_pass(runner, FIRST_PHRASE, workload, 0, None)
    assert calls == [f"a {stage}" for stage in (Stage.SIGLIP_VISION, Stage.SAM_ENCODER, *PHRASE_STAGES)]
    calls.clear()
    timed_pass(runner, NEXT_PHRASE, workload, 1, features)
    assert calls == [f"a {stage}" for stage in PHRASE_STAGES]
    assert tuple(spans_ms) == (TOTAL,)
    assert set(timed_pass(runner, STAGES, workload, 0, None)[0]) == set(STAGES.spans)
    assert workload.some_phrases(0, 1) != workload.some_phrases(1, 1)
    assert workload.some_phrases(len(workload.phrases), 1) == workload.some_phrases(0, 1)


def test_a_warm_up_that_never_settles_ends(
    runner: Recorder, workload: Workload, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_stable", lambda times_ms: False)
    assert warm_up(runner, (FIRST_PHRASE, NEXT_PHRASE), workload) is False
    assert len(encoded_images(calls)) == MAX_WARM_UP_PASSES
    assert calls[-3:] == [f"a {stage}" for stage in PHRASE_STAGES]


@pytest.mark.parametrize(
    ("times_ms", "stable"),
    [([10.0, 10.0], False), ([99.0, 10.0, 10.5, 11.0], True), ([10.0, 10.0, 11.1], False), ([9.0, 20.0, 20.0], False)],
)
def test_three_times_within_a_tenth_are_stable(times_ms: list[float], stable: bool) -> None:
    assert is_stable(times_ms) is stable


def test_an_engine_encodes_every_phrase_it_is_asked(bundle: Bundle, workload: Workload) -> None:
    """None is found in the Segmenter's cache."""
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
    phrases = different_phrases(known, 64)
    assert phrases[: len(known)] == known
    assert len(set(phrases)) == 64
    assert {word for phrase in phrases for word in phrase.split()} <= {word for one in known for word in one.split()}
    assert different_phrases(known, 1) == known[:1]


def test_scenarios_are_chosen_by_name_and_keep_their_order() -> None:
    assert parse_scenarios("") == SCENARIOS
    assert parse_scenarios("stages, next_phrase") == (FIRST_PHRASE, NEXT_PHRASE, STAGES)
    with pytest.raises(BadInputError, match="nonsense"):
        parse_scenarios("next_phrase,nonsense")
