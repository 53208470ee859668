"""Bench's turns: who is asked what and when, of contenders that note it."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rsrefseg.bench.latency.rounds import REWARM_BELOW_MS, WARM_UP_PASSES, WarmUp, take_round, take_turns, warm_up
from rsrefseg.bench.latency.runners import Contender, EngineContender, Tensors, open_contender
from rsrefseg.bench.latency.scenarios import (
    FIRST_PHRASE,
    NEXT_PHRASE,
    SCENARIOS,
    STAGES,
    TOTAL,
    different_phrases,
    question_for,
    timed_pass,
)
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from tests.support.exported import Exported


class Recorder(Contender):
    """Answers nothing and notes who was asked."""

    def __init__(self, bundle: Bundle, name: str, log: list[str], truth: Tensors) -> None:
        super().__init__(bundle)
        self.name, self.log, self.truth = name, log, truth

    def load(self) -> None:
        raise AssertionError("not asked for")

    def providers(self) -> dict[str, str]:
        raise AssertionError("not asked for")

    def precision(self, stage: Stage) -> str:
        raise AssertionError("not asked for")

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        contract = self.bundle.manifest.stages[stage].contract
        assert all(spec.name in tensors for spec in contract.inputs)
        self.log.append(f"{self.name} {stage}")
        return {spec.name: self.truth[spec.name] for spec in contract.outputs}

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        return np.asarray(tensor)

    def close(self) -> None:
        raise AssertionError("not asked for")


def recorders(exported: Exported, *names: str) -> tuple[list[Recorder], list[str], Any]:
    bundle = Bundle.open(exported.bundle)
    log: list[str] = []
    truth = dict(load_reference(bundle)[0].tensors)
    return [Recorder(bundle, name, log, truth) for name in names], log, question_for(bundle)


def test_contenders_take_turns_and_neither_always_comes_first(exported: Exported) -> None:
    (a, b), log, question = recorders(exported, "a", "b")
    slow = WarmUp(3, True, REWARM_BELOW_MS + 1)
    observations = [
        seen
        for number in range(4)
        for seen in take_round([(a, slow), (b, slow)], (FIRST_PHRASE, NEXT_PHRASE), question, number)
    ]
    order = [line.split()[0] for line in log if line.endswith(Stage.SAM_ENCODER)]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [seen.contender for seen in observations if seen.scenario == "first_phrase"] == order
    assert len(observations) == 2 * len(order)


def test_a_fast_contender_gets_a_pass_that_does_not_count(exported: Exported) -> None:
    (a,), log, question = recorders(exported, "a")
    observations = take_round([(a, WarmUp(3, True, 1.0))], (FIRST_PHRASE,), question, 0)
    assert sum(line.endswith(Stage.SAM_ENCODER) for line in log) == 2
    assert len(observations) == 1


@pytest.mark.parametrize(("seconds", "least", "done"), [(1e6, 0, 6), (-1, 0, 2), (-1, 4, 4), (-1, 9, 6)])
def test_rounds_end_with_the_time_but_not_before_the_least(
    exported: Exported, seconds: float, least: int, done: int
) -> None:
    (a,), _, question = recorders(exported, "a")
    numbers: list[int] = [0, 1]  # by an earlier process
    end_s = time.monotonic() + seconds
    entrants = [(a, WarmUp(3, True, REWARM_BELOW_MS + 1))]
    take_turns(
        entrants, (FIRST_PHRASE,), question, range(2, 6), end_s, least, lambda number, seen: numbers.append(number)
    )
    assert numbers == list(range(done))


def test_a_next_phrase_runs_no_image_stage_and_asks_another_phrase(exported: Exported) -> None:
    (a,), log, question = recorders(exported, "a")
    first = timed_pass(a, FIRST_PHRASE, question, 0, None)
    assert log == [f"a {stage}" for stage in (Stage.SIGLIP_VISION, Stage.SAM_ENCODER, Stage.SIGLIP_TEXT)] + [
        f"a {stage}" for stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
    ]
    log.clear()
    following = timed_pass(a, NEXT_PHRASE, question, 1, first.features)
    assert log == [f"a {stage}" for stage in (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)]
    assert tuple(first.spans_ms) == tuple(following.spans_ms) == (TOTAL,)
    assert set(timed_pass(a, STAGES, question, 0, None).spans_ms) == set(STAGES.spans)
    assert question.some_phrases(0, 1) != question.some_phrases(1, 1)
    assert question.some_phrases(len(question.phrases), 1) == question.some_phrases(0, 1)


def test_an_engine_encodes_as_many_texts_as_are_asked(exported: Exported) -> None:
    contender = open_contender("onnxruntime", Bundle.open(exported.bundle), None)
    assert isinstance(contender, EngineContender)
    contender.load()
    question, encoded = question_for(contender.bundle), []
    encode_text = contender.engine.encode_text

    def counting(input_ids: npt.NDArray[Any], token_mask: npt.NDArray[Any]) -> list[Any]:
        encoded.append(len(input_ids))
        return encode_text(input_ids, token_mask)

    contender.engine.encode_text = counting  # type: ignore[method-assign]
    features = contender.encode(question.picture)
    for scenario in SCENARIOS:
        if not scenario.by_stage:
            encoded.clear()
            timed_pass(contender, scenario, question, 3, features)
            assert sum(encoded) == scenario.phrases
    contender.close()


@pytest.mark.parametrize("known", [("the ship", "a large harbour in the north"), ("ship",)])
def test_different_phrases_begin_with_the_known_ones_and_never_repeat(known: tuple[str, ...]) -> None:
    phrases = different_phrases(known, 64)
    assert phrases[: len(known)] == known
    assert len(set(phrases)) == 64
    assert {word for phrase in phrases for word in phrase.split()} <= {word for one in known for word in one.split()}
    assert different_phrases(known, 1) == known[:1]


def test_a_warm_up_that_never_settles_ends(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    (a,), log, question = recorders(exported, "a")
    monkeypatch.setattr("rsrefseg.bench.latency.rounds.is_stable", lambda timings: False)
    found = warm_up(a, (FIRST_PHRASE,), question)
    assert (found.passes, found.stable) == (WARM_UP_PASSES, False)
    log.clear()
    warm_up(a, (FIRST_PHRASE, NEXT_PHRASE), question)
    assert log[-3:] == [f"a {stage}" for stage in (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)]
