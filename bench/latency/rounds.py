"""Contenders in turn: a drifting machine then slows all of them, and their ratio stays."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .runners import Contender
from .scenarios import FIRST_PHRASE, TOTAL, Question, Scenario, timed_pass
from .summary import STABLE_PASSES, is_stable

WARM_UP_PASSES = 20
WARM_UP_SECONDS = 60.0
# The threads of one runtime spin for some milliseconds after their work is done and would take cores from the next.
SETTLE_MS = 30.0
# A fast contender finds the caches full of the other's weights, so it gets a pass that does not count; a slow one
# streams its weights from memory anyway.
REWARM_BELOW_MS = 300.0


@dataclass(frozen=True, slots=True)
class Observation:
    """One timed pass: in which round, whose, of what, and its milliseconds by span."""

    round: int
    contender: str
    scenario: str
    spans_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a contender was warmed up: passes done, whether they had settled, and what the last one took."""

    passes: int
    stable: bool
    last_ms: float


def warm_up(contender: Contender, scenarios: Sequence[Scenario], question: Question) -> WarmUp:
    """Ask for a first phrase until three times in a row it takes as long: at most so many passes, and from the third on
    at most so many seconds.

    Every other scenario is then run once: some runtimes compile or allocate for each number of phrases.
    """
    timings: list[float] = []
    started = time.perf_counter()
    features: Any = None
    while not is_stable(timings):
        done = timed_pass(contender, FIRST_PHRASE, question, len(timings), None)
        timings.append(done.spans_ms[TOTAL])
        features = done.features
        out_of_time = len(timings) >= STABLE_PASSES and time.perf_counter() - started > WARM_UP_SECONDS
        if len(timings) == WARM_UP_PASSES or out_of_time:
            break
    for scenario in scenarios:
        if scenario is not FIRST_PHRASE:
            timed_pass(contender, scenario, question, 0, features)
    return WarmUp(len(timings), is_stable(timings), timings[-1])


def take_round(
    contenders: Sequence[tuple[Contender, WarmUp]], scenarios: Sequence[Scenario], question: Question, number: int
) -> list[Observation]:
    """Every contender once: A B in even rounds, B A in odd ones, so that neither always comes first."""
    observations: list[Observation] = []
    for contender, warm in contenders if number % 2 == 0 else contenders[::-1]:
        time.sleep(SETTLE_MS / 1e3)
        if warm.last_ms < REWARM_BELOW_MS:
            timed_pass(contender, FIRST_PHRASE, question, number, None)
        observations += _turn(contender, scenarios, question, number)
    return observations


def take_turns(
    contenders: Sequence[tuple[Contender, WarmUp]],
    scenarios: Sequence[Scenario],
    question: Question,
    rounds: range,
    end_s: float,
    least: int,
    on_round: Callable[[int, list[Observation]], None],
) -> None:
    """Rounds, until there are enough of them or the time is over.

    Args:
        contenders: loaded and warmed up.
        scenarios: of a turn.
        question: picture and phrases.
        rounds: their numbers; those before the first were done by an earlier process.
        end_s: by ``time.monotonic``, after which no round begins ...
        least: ... that is none of the first ``least``.
        on_round: takes each round when it is over.
    """
    for number in rounds:
        if number >= least and time.monotonic() >= end_s:
            return
        on_round(number, take_round(contenders, scenarios, question, number))


def _turn(contender: Contender, scenarios: Sequence[Scenario], question: Question, number: int) -> list[Observation]:
    """Every scenario once, each with other phrases than the one before."""
    observations = []
    features: Any = None
    asked = number
    for scenario in scenarios:
        done = timed_pass(contender, scenario, question, asked, features)
        observations.append(Observation(number, contender.name, scenario.name, done.spans_ms))
        if not scenario.by_stage:
            features = done.features
        asked += scenario.phrases
    return observations
