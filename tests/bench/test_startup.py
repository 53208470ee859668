"""Start-up times and memory of contenders, measured in processes of their own."""

from pathlib import Path

import numpy as np
import pytest

from rsrefseg.bench.latency.startup import STARTS, Startup, measure_startup, measure_startups
from rsrefseg.bench.system.machine import peak_memory_mib
from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.exported import Exported


def test_memory_is_that_of_the_contender_alone(exported: Exported) -> None:
    ballast = np.ones(400 * 2**20, np.uint8)
    own = peak_memory_mib()
    startup = measure_startup("onnxruntime", Bundle.open(exported.bundle), None)
    assert own is not None
    assert startup.peak_memory_mib is not None
    assert own > ballast.nbytes / 2**20 > startup.peak_memory_mib


def test_a_contender_whose_process_fails_is_reported_not_raised(exported: Exported) -> None:
    startup = measure_startup("nonsense", Bundle.open(exported.bundle), None)
    assert startup.peak_memory_mib is None
    assert startup.error is not None
    assert "unknown backend 'nonsense'" in startup.error


def test_contenders_start_in_turn_and_only_their_first_process_answers(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are doubles, for their times must be known."""
    loads_ms = {"a": iter((30.0, 10.0, 20.0)), "b": iter((3.0, 2.0, 1.0))}
    asked = []

    def start(name: str, bundle: Bundle, run: Path | None, answers: bool) -> Startup:
        asked.append((name, answers))
        first_answer_ms, memory = (99.0, 500.0) if answers else (None, 400.0)
        load_ms = next(loads_ms[name])
        return Startup(load_ms + 1, load_ms, None, None, first_answer_ms, 100.0, memory)

    monkeypatch.setattr("rsrefseg.bench.latency.startup.measure_startup", start)
    told: list[str] = []
    first, second = measure_startups(["a", "b"], Bundle.open(exported.bundle), None, told.append)
    assert asked == [("a", True), ("b", True), ("a", False), ("b", False), ("a", False), ("b", False)]
    assert [line.partition(":")[0] for line in told] == ["a", "b", "a", "b", "a", "b"]
    assert told[2] == "a: start-up and memory, process 2 of 3"
    assert first == Startup(21.0, 20.0, 10.0, 30.0, 99.0, 100.0, 500.0)
    assert (second.load_ms, second.load_least_ms, second.load_most_ms) == (2.0, 1.0, 3.0)


def test_a_contender_that_cannot_start_is_not_started_again(exported: Exported) -> None:
    told: list[str] = []
    bad, good = measure_startups(["nonsense", "onnxruntime"], Bundle.open(exported.bundle), None, told.append)
    assert [line.partition(":")[0] for line in told] == ["nonsense", *["onnxruntime"] * STARTS]
    assert bad.error is not None
    assert good.error is None
    assert good.load_least_ms is not None


def test_a_process_that_only_loads_answers_nothing(exported: Exported) -> None:
    loaded = measure_startup("onnxruntime", Bundle.open(exported.bundle), None, answers=False)
    assert loaded.error is None
    assert loaded.load_ms is not None
    assert loaded.first_answer_ms is None
