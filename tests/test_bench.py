"""Bench: figures worked out by hand, contenders really in turn, and a report that says what was measured and how."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.contenders import Contender, Tensors, open_contenders
from bench.latency import latency_rows, ratio_rows, run_bench
from bench.latency_report import BenchReport
from bench.machine import busy_notes, peak_memory_mib
from bench.scenarios import FIRST_PHRASE, NEXT_PHRASE, SCENARIOS, TOTAL, question_for, timed_pass
from bench.startup import measure_startup
from bench.statistics import Ratio, Summary, is_stable
from bench.turns import REWARM_BELOW_MS, WARM_UP_PASSES, Observation, WarmUp, take_turns, warm_up
from engines.bundle import Bundle
from engines.contracts import Stage
from engines.errors import BadInputError, MissingPartError
from engines.reference import load_reference
from exported import Exported, spoiled_bundle
from printing import printed

ROUNDS = 3


@pytest.fixture(scope="module")
def report(exported: Exported) -> BenchReport:
    return run_bench(exported.bundle, ["torch", "auto"], exported.run, ROUNDS)


def test_percentiles_worked_out_by_hand() -> None:
    summary = Summary.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (summary.p50_ms, summary.mean_ms, summary.min_ms, summary.count) == (3.0, 3.0, 1.0, 5)
    assert summary.p90_ms == pytest.approx(4.6)
    assert summary.p99_ms == pytest.approx(4.96)
    assert Summary.of([7.0]).p99_ms == 7.0


def test_ratios_worked_out_by_hand() -> None:
    ratio = Ratio.of([10.0, 20.0, 30.0], [5.0, 5.0, 5.0])
    assert (ratio.median, ratio.rounds) == (4.0, 3)
    assert ratio.p10 == pytest.approx(2.4)
    assert ratio.p90 == pytest.approx(5.6)


def test_a_machine_that_slows_down_leaves_the_ratio() -> None:
    drift = np.linspace(1, 3, 10)
    ratio = Ratio.of(list(40 * drift), list(10 * drift))
    assert (ratio.p10, ratio.median, ratio.p90) == pytest.approx((4, 4, 4))


@pytest.mark.parametrize(
    ("timings", "stable"),
    [([10.0, 10.0], False), ([99.0, 10.0, 10.5, 11.0], True), ([10.0, 10.0, 11.1], False), ([9.0, 20.0, 20.0], False)],
)
def test_three_times_within_a_tenth_are_stable(timings: list[float], stable: bool) -> None:
    assert is_stable(timings) is stable


def test_rows_sum_the_turns_of_a_round_and_compare_with_the_first_contender() -> None:
    observations = []
    for number, (slow, fast) in enumerate([(20.0, 10.0), (40.0, 10.0), (90.0, 30.0)]):
        for turn, wobble in enumerate((-1.0, 1.0)):
            for name, time_ms in (("slow", slow + wobble), ("fast", fast + wobble)):
                for scenario in SCENARIOS:
                    spans = dict.fromkeys(scenario.spans, time_ms)
                    observations.append(Observation(number, turn, name, scenario.name, spans))
    ratios = {(row.scenario, row.span): row.ratio for row in ratio_rows(observations, ["slow", "fast"])}
    assert set(ratios) == {(scenario.name, span) for scenario in SCENARIOS for span in scenario.spans}
    # 40 / 20, 80 / 20, 180 / 60: single turns (19 / 9, ...) would give other figures.
    assert ratios["first_phrase", TOTAL].median == pytest.approx(3.0)
    rows = latency_rows(observations, ["slow", "fast"])
    fast = next(row.summary for row in rows if (row.contender, row.span) == ("fast", TOTAL))
    assert (fast.count, fast.min_ms, fast.p50_ms) == (6, 9.0, 11.0)


class Recorder(Contender):
    """Answers nothing and notes who was asked."""

    threads = 1

    def __init__(self, bundle: Bundle, name: str, log: list[str], truth: Tensors) -> None:
        super().__init__(bundle)
        self.name, self.log, self.truth = name, log, truth

    def load(self) -> None:
        raise AssertionError("not asked for")

    def providers(self) -> dict[str, str]:
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
    observations = take_turns([(a, slow), (b, slow)], question, 2, lambda done, total: None)
    order = [line.split()[0] for line in log if line.endswith(Stage.SAM_ENCODER)]
    assert order == ["a", "b", "a", "b", "b", "a", "b", "a"]
    assert [seen.contender for seen in observations if seen.scenario == "first_phrase"] == order
    assert len(observations) == 2 * len(order)


def test_a_fast_contender_gets_a_pass_that_does_not_count(exported: Exported) -> None:
    (a,), log, question = recorders(exported, "a")
    observations = take_turns([(a, WarmUp(3, True, 1.0))], question, 1, lambda done, total: None)
    assert sum(line.endswith(Stage.SAM_ENCODER) for line in log) == 4
    assert sum(seen.scenario == "first_phrase" for seen in observations) == 2


def test_a_next_phrase_runs_no_image_stage_and_asks_another_phrase(exported: Exported) -> None:
    (a,), log, question = recorders(exported, "a")
    first = timed_pass(a, FIRST_PHRASE, question, 0, {})
    assert log == [f"a {stage}" for stage in (Stage.SIGLIP_VISION, Stage.SAM_ENCODER, Stage.SIGLIP_TEXT)] + [
        f"a {stage}" for stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
    ]
    log.clear()
    following = timed_pass(a, NEXT_PHRASE, question, 1, first.features)
    assert log == [f"a {stage}" for stage in (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)]
    assert tuple(first.spans_ms) == FIRST_PHRASE.spans
    assert tuple(following.spans_ms) == NEXT_PHRASE.spans
    assert question.some_phrases(0, 1) != question.some_phrases(1, 1)
    assert question.some_phrases(len(question.phrases), 1) == question.some_phrases(0, 1)


def test_a_warm_up_that_never_settles_ends(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    (a,), _, question = recorders(exported, "a")
    monkeypatch.setattr("bench.turns.is_stable", lambda timings: False)
    found = warm_up(a, question)
    assert (found.passes, found.stable) == (WARM_UP_PASSES, False)


def test_all_contenders_are_measured_on_one_model(report: BenchReport, exported: Exported) -> None:
    assert [contender.name for contender in report.contenders] == ["torch", "onnxruntime"]
    for contender in report.contenders:
        assert contender.agreement is not None
        assert contender.agreement.holds
        assert contender.startup.error is None
    assert report.bundle.digest == Bundle.open(exported.bundle).digest
    # torch is the very code that made the reference: it agrees best.
    torch, engine = (contender.agreement.error for contender in report.contenders if contender.agreement)
    assert torch.share_of_max <= engine.share_of_max


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_total_is_at_least_its_parts(report: BenchReport, scenario: Any) -> None:
    for name in ("torch", "onnxruntime"):
        parts = [report.latency(name, scenario.name, span).min_ms for span in scenario.spans if span != TOTAL]
        total = report.latency(name, scenario.name, TOTAL)
        assert total.count == 2 * ROUNDS
        assert 0 < sum(parts) <= total.p99_ms
        assert total.min_ms <= total.p50_ms <= total.p90_ms <= total.p99_ms
    assert report.ratio("onnxruntime", scenario.name, TOTAL).rounds == ROUNDS


def test_a_next_phrase_is_cheaper_than_a_first(report: BenchReport) -> None:
    for name in ("torch", "onnxruntime"):
        assert report.latency(name, "next_phrase", TOTAL).min_ms < report.latency(name, "first_phrase", TOTAL).p99_ms


def test_the_report_has_the_promised_fields(report: BenchReport) -> None:
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert set(document) == {
        "bundle", "machine", "settings", "contenders", "others_busy", "notes", "latencies", "ratios",
    }  # fmt: skip
    assert {"cpu", "usable_cores", "cores", "versions", "python", "system"} <= set(document["machine"])
    assert {"torch", "onnxruntime"} <= set(document["machine"]["versions"])
    assert document["settings"]["rounds"] == ROUNDS
    for contender in document["contenders"]:
        assert set(contender["providers"]) == set(Stage)
        assert contender["threads"] >= 1
        startup = contender["startup"]
        assert startup["load_ms"] > 0
        assert startup["first_answer_ms"] > 0
        assert 0 < startup["memory_before_load_mib"] <= startup["peak_memory_mib"]
    engine = document["contenders"][1]
    assert set(engine["providers"].values()) == {"CPUExecutionProvider"}
    spans = {(row["contender"], row["scenario"], row["span"]) for row in document["latencies"]}
    assert len(spans) == len(document["latencies"]) == 2 * sum(len(scenario.spans) for scenario in SCENARIOS)
    assert {"p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms", "count"} <= set(document["latencies"][0])
    assert {"median", "p10", "p90", "reference"} <= set(document["ratios"][0])


def test_the_table_fits_a_terminal_and_names_every_span(report: BenchReport) -> None:
    text = printed(report, width=80)
    for scenario in SCENARIOS:
        assert all(f"\n {span} " in text for span in scenario.spans)
    assert "…" not in text
    assert "WRONG" not in text


def test_without_a_run_torch_is_left_out_with_the_reason(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.open(exported.bundle)
    opened, left_out = open_contenders(["torch", "auto", "onnxruntime"], bundle, None)
    assert [contender.name for contender in opened] == ["onnxruntime"]
    assert [entry.name for entry in left_out] == ["torch"]
    assert "no run" in left_out[0].reason
    with pytest.raises(BadInputError, match="no run"):
        open_contenders(["torch"], bundle, None)
    with pytest.raises(BadInputError, match="no merged model"):
        open_contenders(["torch", "auto"], bundle, tmp_path)


def test_without_pytorch_torch_is_left_out_with_the_way_out(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.models.find_spec", lambda name: None)
    bundle = Bundle.open(exported.bundle)
    opened, left_out = open_contenders(["torch", "auto"], bundle, None)
    assert [contender.name for contender in opened] == ["onnxruntime"]
    assert "pip install 'rsrefseg[train]'" in left_out[0].reason
    with pytest.raises(MissingPartError, match="rsrefseg\\[train\\]"):
        open_contenders(["torch"], bundle, None)


@pytest.mark.parametrize("names", [["tensorflow"], ["torch", "tensorflow"], [""], []])
def test_unknown_contenders_and_none_are_refused(exported: Exported, names: list[str]) -> None:
    with pytest.raises(BadInputError, match=r"unknown contender 'tensorflow': known are torch, auto|no contender"):
        open_contenders(names, Bundle.open(exported.bundle), exported.run)


def test_a_fast_wrong_answer_is_marked_as_wrong(exported: Exported, tmp_path: Path) -> None:
    spoiled = spoiled_bundle(
        exported.bundle, tmp_path / "bundle", Stage.SAM_DECODER, "mask_downscaling.6.weight", lambda values: values * 2
    )
    report = run_bench(spoiled, ["onnxruntime"], None, ROUNDS)
    assert report.contenders[0].is_wrong
    assert "WRONG: onnxruntime" in printed(report)
    assert report.ratios == ()


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


def test_a_busy_machine_is_told() -> None:
    assert busy_notes([0.02, None]) == []
    assert busy_notes([None]) == []
    assert "50%" in busy_notes([0.01, 0.5])[0]


def test_an_engine_is_measured_without_pytorch(exported: Exported) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from bench.latency import run_bench\n"
        f"report = run_bench(Path({str(exported.bundle)!r}), ['onnxruntime'], None, 3)\n"
        "print([contender.name for contender in report.contenders])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['onnxruntime']", done.stderr
