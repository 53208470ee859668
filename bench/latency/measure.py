"""Times runners in interleaved rounds, so that a drift of the machine affects all of them alike."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rsrefseg.engines.engine import IMAGE_STAGES, Tensors

from .runner import PHRASE_STAGES, Runner
from .scenarios import FIRST_PHRASE, STRETCH, TOKENIZE, TOTAL, UPSAMPLE, Scenario, Workload

LEAST_ROUNDS = 5
MAX_WARM_UP_PASSES = 20
_MAX_WARM_UP_S = 60.0
_STABLE_PASSES, _STABLE_SPREAD = 3, 0.10
# Threads of a runtime keep spinning for some milliseconds and would take cores from the next runner.
SETTLE_S = 0.03
# Caches contain the previous runner's weights, so the first pass of a fast runner is not timed; a slow runner reads its
# weights from memory anyway.
REWARM_BELOW_MS = 300.0

# Milliseconds of each round by (runner, scenario, span).
Times = dict[tuple[str, str, str], list[float]]
_T = TypeVar("_T")


def measure(
    runners: Sequence[Runner],
    scenarios: Sequence[Scenario],
    workload: Workload,
    rounds: int,
    minutes: float,
    on_round: Callable[[int], None] = lambda done: None,
) -> Times:
    """Time all scenarios of all runners in rounds; odd rounds reverse the order of runners.

    Args:
        runners: loaded and warmed-up runners.
        scenarios: scenarios in running order.
        workload: image and phrases.
        rounds: maximum number of rounds.
        minutes: time after which no round begins, except the first ``LEAST_ROUNDS``.
        on_round: called after each round with the number of finished rounds.
    """
    times: Times = {}
    deadline_s = time.monotonic() + 60 * minutes
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() >= deadline_s:
            break
        for runner in runners if number % 2 == 0 else runners[::-1]:
            time.sleep(SETTLE_S)
            if times.get((runner.name, FIRST_PHRASE.name, TOTAL), [0.0])[-1] < REWARM_BELOW_MS:
                timed_pass(runner, FIRST_PHRASE, workload, number, None)
            features, first_phrase = None, number
            for scenario in scenarios:
                spans_ms, encoded = timed_pass(runner, scenario, workload, first_phrase, features)
                for span, time_ms in spans_ms.items():
                    times.setdefault((runner.name, scenario.name, span), []).append(time_ms)
                features = features if scenario.by_stage else encoded
                first_phrase += scenario.phrases
        on_round(number + 1)
    return times


def warm_up(runner: Runner, scenarios: Sequence[Scenario], workload: Workload) -> bool:
    """Repeat the first phrase until ``is_stable``, for at most ``MAX_WARM_UP_PASSES`` passes and about a minute.

    Every other scenario then runs once, because some runtimes compile or allocate for each number of phrases.

    Returns:
        Whether the times are stable.
    """
    times_ms: list[float] = []
    started_s = time.perf_counter()
    features: Any = None
    while not is_stable(times_ms) and len(times_ms) < MAX_WARM_UP_PASSES:
        if len(times_ms) >= _STABLE_PASSES and time.perf_counter() - started_s > _MAX_WARM_UP_S:
            break
        spans_ms, features = timed_pass(runner, FIRST_PHRASE, workload, len(times_ms), None)
        times_ms.append(spans_ms[TOTAL])
    for scenario in scenarios:
        if scenario is not FIRST_PHRASE:
            timed_pass(runner, scenario, workload, 0, features)
    return is_stable(times_ms)


def is_stable(times_ms: Sequence[float]) -> bool:
    """Return whether the last three times are within 10% of the shortest of them."""
    last = times_ms[-_STABLE_PASSES:]
    return len(last) == _STABLE_PASSES and max(last) <= (1 + _STABLE_SPREAD) * min(last)


def timed_pass(
    runner: Runner, scenario: Scenario, workload: Workload, first_phrase: int, features: Any
) -> tuple[dict[str, float], Any]:
    """Run a scenario once.

    Args:
        runner: loaded runner.
        scenario: the scenario.
        workload: image and phrases.
        first_phrase: number of the first phrase.
        features: image features of an earlier pass that was not by stage; ignored if the image is new.

    Returns:
        Milliseconds by span, and the image features, or None if by stage.
    """
    phrases = workload.some_phrases(first_phrase, scenario.phrases)
    if scenario.by_stage:
        return _pass_by_stage(runner, workload, phrases)
    encode_ms = 0.0
    if scenario.new_image:
        features, encode_ms = timed(lambda: runner.encode(workload.image))
    _, predict_ms = timed(lambda: runner.predict(features, phrases, workload.size))
    return {TOTAL: encode_ms + predict_ms}, features


def _pass_by_stage(runner: Runner, workload: Workload, phrases: Sequence[str]) -> tuple[dict[str, float], None]:
    spans_ms: dict[str, float] = {}
    image, spans_ms[STRETCH] = timed(lambda: runner.stretch(workload.image))
    tokens, spans_ms[TOKENIZE] = timed(lambda: runner.tokenizer.encode(phrases))
    tensors: Tensors = {"image": image, "input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
    for stage in (*IMAGE_STAGES, *PHRASE_STAGES):
        outputs, spans_ms[stage.value] = timed(partial(runner.run, stage, tensors))
        tensors |= outputs
    _, spans_ms[UPSAMPLE] = timed(lambda: runner.finish(tensors["mask_logits"], workload.size))
    return spans_ms, None


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """Call a function; return its result and its duration in ms."""
    start_s = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start_s) * 1e3
