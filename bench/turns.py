"""Contenders in turn: a drifting machine then slows all of them, and their ratio stays."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.contenders import Contender, Tensors
from bench.scenarios import FIRST_PHRASE, SCENARIOS, TOTAL, Question, timed_pass
from bench.statistics import is_stable

TURNS_PER_ROUND = 2
WARM_UP_PASSES = 20
WARM_UP_SECONDS = 60.0
# The threads of one runtime spin for some milliseconds after their work is done and would take cores from the next.
SETTLE_MS = 30.0
# A fast contender finds the caches full of the other's weights, so it gets a pass that does not count; a slow one
# streams its weights from memory anyway.
REWARM_BELOW_MS = 300.0


@dataclass(frozen=True, slots=True)
class Observation:
    """One timed pass: when, whose, of what, and its milliseconds by span."""

    round: int
    turn: int
    contender: str
    scenario: str
    spans_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a contender was warmed up: passes done, whether they had settled, and what the last one took."""

    passes: int
    stable: bool
    last_ms: float


def warm_up(contender: Contender, question: Question) -> WarmUp:
    """Ask for a first phrase until three times in a row it takes as long, within bounds of passes and seconds."""
    timings: list[float] = []
    started = time.perf_counter()
    while not is_stable(timings):
        timings.append(timed_pass(contender, FIRST_PHRASE, question, len(timings), {}).spans_ms[TOTAL])
        if len(timings) == WARM_UP_PASSES or time.perf_counter() - started > WARM_UP_SECONDS:
            break
    return WarmUp(len(timings), is_stable(timings), timings[-1])


def take_turns(
    contenders: Sequence[tuple[Contender, WarmUp]],
    question: Question,
    rounds: int,
    progress: Callable[[int, int], None],
) -> list[Observation]:
    """A B A B in one round, B A B A in the next, so that neither always comes first."""
    observations: list[Observation] = []
    for number in range(rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        for turn in range(TURNS_PER_ROUND):
            for contender, warm in order:
                time.sleep(SETTLE_MS / 1e3)
                if warm.last_ms < REWARM_BELOW_MS:
                    timed_pass(contender, FIRST_PHRASE, question, number, {})
                observations += _turn(contender, question, number, turn)
        progress(number + 1, rounds)
    return observations


def _turn(contender: Contender, question: Question, number: int, turn: int) -> list[Observation]:
    """Every scenario once, each with other phrases than the one before."""
    observations = []
    features: Tensors = {}
    asked = number * TURNS_PER_ROUND + turn
    for scenario in SCENARIOS:
        done = timed_pass(contender, scenario, question, asked, features)
        observations.append(Observation(number, turn, contender.name, scenario.name, done.spans_ms))
        features = done.features
        asked += scenario.phrases
    return observations
