"""Start-up figures of several processes; real ones are in ``tests/slow/test_bench.py``."""

from pathlib import Path

import pytest

from rsrefseg.bench.latency.startup import Startup, measure_startups
from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.exported import Exported


def test_processes_are_interleaved_and_only_the_first_of_a_runner_answers(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads_ms = {"a": iter((30.0, 10.0, 20.0)), "b": iter((3.0, 2.0, 1.0))}
    started = []

    def start(name: str, bundle: Bundle, run: Path | None, answers: bool) -> Startup:
        started.append((name, answers))
        if name == "bad":
            return Startup(error="no")
        load_ms = next(loads_ms[name])
        first_answer_ms, memory_mib = (99.0, 500.0) if answers else (None, 400.0)
        return Startup(load_ms + 1, load_ms + 2, load_ms, first_answer_ms=first_answer_ms, peak_memory_mib=memory_mib)

    monkeypatch.setattr("rsrefseg.bench.latency.startup.start", start)
    said: list[str] = []
    first, bad, second = measure_startups(["a", "bad", "b"], Bundle.open(exported.bundle), None, said.append)
    assert started == [("a", True), ("bad", True), ("b", True), ("a", False), ("b", False), ("a", False), ("b", False)]
    assert [line.partition(":")[0] for line in said] == [name for name, _ in started]
    assert first == Startup(21.0, 22.0, 20.0, 10.0, 30.0, 99.0, 500.0)
    assert (second.load_ms, second.load_least_ms, second.load_most_ms) == (2.0, 1.0, 3.0)
    assert bad.error == "no"
