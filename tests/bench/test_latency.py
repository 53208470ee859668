"""Bench: figures worked out by hand, and a report that says what was measured, on what and how."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rsrefseg.bench.latency.bench import BenchRequest, run_bench
from rsrefseg.bench.latency.report import BenchReport, ContenderFacts
from rsrefseg.bench.latency.rounds import Observation, WarmUp
from rsrefseg.bench.latency.rows import latency_rows, ratio_rows, share_rows
from rsrefseg.bench.latency.runners import open_contenders
from rsrefseg.bench.latency.scenarios import (
    FIRST_PHRASE,
    NEXT_PHRASE,
    SCENARIOS,
    STAGES,
    TOTAL,
    Scenario,
    parse_scenarios,
)
from rsrefseg.bench.latency.startup import Startup
from rsrefseg.bench.latency.summary import is_stable
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError, MissingPartError
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported, spoiled_bundle
from tests.support.printing import printed

ROUNDS = 3


@pytest.fixture(scope="module")
def report(exported: Exported) -> BenchReport:
    return run_bench(BenchRequest(["torch", "onnxruntime"], exported.bundle, exported.run, ROUNDS))


@pytest.fixture(autouse=True)
def started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing PyTorch takes seconds: only ``report``, made before, starts everybody as often as a user's bench."""
    monkeypatch.setattr("rsrefseg.bench.latency.startup.STARTS", 1)


@pytest.mark.parametrize(
    ("timings", "stable"),
    [([10.0, 10.0], False), ([99.0, 10.0, 10.5, 11.0], True), ([10.0, 10.0, 11.1], False), ([9.0, 20.0, 20.0], False)],
)
def test_three_times_within_a_tenth_are_stable(timings: list[float], stable: bool) -> None:
    assert is_stable(timings) is stable


def observed(rounds: list[dict[str, float]], scenarios: tuple[Scenario, ...]) -> list[Observation]:
    """Rounds of milliseconds by contender, the same for every span of a scenario; twice that for 8 phrases."""
    return [
        Observation(number, name, scenario.name, dict.fromkeys(scenario.spans, time_ms * (1 + scenario.phrases // 8)))
        for number, times in enumerate(rounds)
        for name, time_ms in times.items()
        for scenario in scenarios
    ]


def facts_of(name: str) -> ContenderFacts:
    return ContenderFacts(name, "cpu", 1, {}, {}, Startup(), {}, WarmUp(3, True, 1.0))


def test_rows_compare_with_the_first_contender_round_by_round(exported: Exported) -> None:
    scenarios = SCENARIOS[:3]
    seen = observed([{"slow": slow, "fast": fast} for slow, fast in [(20, 10), (40, 10), (90, 30)]], scenarios)
    ratios = {(row.scenario, row.span): row.ratio for row in ratio_rows(seen, ["slow", "fast"], scenarios)}
    assert set(ratios) == {(scenario.name, span) for scenario in scenarios for span in scenario.spans}
    assert ratios["first_phrase", TOTAL].median == pytest.approx(3.0)  # of 2, 4, 3; of the medians it would be 4
    rows = latency_rows(seen, [facts_of("slow"), facts_of("fast")], scenarios, Bundle.open(exported.bundle), {})
    fast = next(row for row in rows if (row.contender, row.scenario) == ("fast", "first_phrase"))
    assert (fast.summary.count, fast.summary.min_ms, fast.summary.p50_ms) == (3, 10.0, 10.0)
    assert (fast.images_per_s, fast.phrases_per_s) == (pytest.approx(100), pytest.approx(100))
    eight = next(row for row in rows if (row.contender, row.scenario) == ("fast", "next_8_phrases"))
    assert eight.images_per_s is None
    assert eight.phrases_per_s == pytest.approx(400)
    shares = {(row.contender, row.scenario): row.share for row in share_rows(seen, ["slow", "fast"], scenarios)}
    assert shares["slow", "next_8_phrases"].median == pytest.approx(2.0)
    assert ("slow", "first_phrase") not in shares


def test_scenarios_are_chosen_by_name_and_keep_their_order() -> None:
    assert parse_scenarios("") == SCENARIOS
    assert parse_scenarios("stages, next_phrase") == (FIRST_PHRASE, NEXT_PHRASE, STAGES)
    with pytest.raises(BadInputError, match="unknown scenario 'nonsense': known are first_phrase"):
        parse_scenarios("next_phrase,nonsense")


def test_all_contenders_are_measured_on_one_model(report: BenchReport, exported: Exported) -> None:
    assert [contender.name for contender in report.contenders] == ["torch", "onnxruntime"]
    for contender in report.contenders:
        assert not contender.is_wrong
        assert contender.startup.error is None
    assert report.bundle.digest == Bundle.open(exported.bundle).digest


def test_every_speed_carries_its_parity(report: BenchReport) -> None:
    """End to end the masks' IoU, for the weights are trained; by stage the error of its output."""
    for row in report.latencies:
        if row.span.startswith("host_"):
            assert row.agreement is None
            continue
        assert row.agreement is not None
        assert not row.wrong
        assert row.agreement.error.share_of_max <= 1e-4
        assert (row.agreement.iou_worst is None) == (row.scenario == STAGES.name)
        assert row.agreement.text.startswith("IoU 1.0") == (row.scenario != STAGES.name)


def test_latencies_are_in_order_and_rest_on_every_round(report: BenchReport) -> None:
    for row in report.latencies:
        figures = row.summary
        assert figures.count == ROUNDS
        assert 0 < figures.min_ms <= figures.p50_ms <= figures.p90_ms <= figures.p99_ms
        assert figures.p50_low_ms <= figures.p50_ms <= figures.p50_high_ms
    assert report.ratio("onnxruntime", "first_phrase", TOTAL).rounds == ROUNDS


def test_what_finds_its_picture_encoded_is_cheaper(report: BenchReport) -> None:
    for name in ("torch", "onnxruntime"):
        assert report.latency(name, "next_phrase", TOTAL).min_ms < report.latency(name, "first_phrase", TOTAL).p99_ms
        assert (
            report.latency(name, "next_8_phrases", TOTAL).min_ms < report.latency(name, "first_8_phrases", TOTAL).p99_ms
        )
        assert report.share(name, "next_phrase").rounds == ROUNDS


def test_stages_stand_beside_their_floors(report: BenchReport, exported: Exported) -> None:
    flops = {stage.value: record.flops for stage, record in Bundle.open(exported.bundle).manifest.stages.items()}
    rows = {(row.contender, row.stage): row for row in report.roofline}
    assert set(rows) == {(name, stage.value) for name in ("torch", "onnxruntime") for stage in Stage}
    for (name, stage), row in rows.items():
        assert row.flops == flops[stage]
        assert row.p50_ms == report.latency(name, "stages", stage).p50_ms
        assert 0 < row.share == pytest.approx(row.floor_ms / row.p50_ms)
        assert row.share < 1.2  # nothing is faster than the machine, but for the noise of both measurements


def test_the_report_has_the_promised_fields(report: BenchReport) -> None:
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert {"cpu", "usable_cores", "cores", "versions", "python", "system"} <= set(document["machine"])
    assert {"torch", "onnxruntime"} <= set(document["machine"]["versions"])
    assert document["settings"]["rounds"] == ROUNDS
    assert document["settings"]["scenarios"] == [scenario.name for scenario in SCENARIOS]
    for contender in document["contenders"]:
        assert set(contender["providers"]) == set(Stage)
        assert contender["threads"] >= 1
        assert contender["agrees"] is True
        startup = contender["startup"]
        assert 0 < startup["load_least_ms"] <= startup["load_ms"] <= startup["load_most_ms"]
        assert startup["first_answer_ms"] > 0
        assert 0 < startup["memory_before_load_mib"] <= startup["peak_memory_mib"]
    engine = document["contenders"][1]
    assert set(engine["providers"].values()) == {"CPUExecutionProvider"}
    spans = {(row["contender"], row["scenario"], row["span"]) for row in document["latencies"]}
    assert len(spans) == len(document["latencies"]) == 2 * sum(len(scenario.spans) for scenario in SCENARIOS)
    assert {"p50_ms", "p90_ms", "p99_ms", "p50_low_ms", "p50_high_ms", "count"} <= set(document["latencies"][0])
    assert {"median", "low", "high", "p10", "p90", "reference"} <= set(document["ratios"][0])


def test_the_tables_name_every_scenario_stage_and_contender(report: BenchReport) -> None:
    text = printed(report, width=100)
    for wanted in ("first phrase:", "next phrase:", "8 new phrases", "32 new phrases", "a new picture and 8 phrases"):
        assert wanted in text
    assert all(f"\n {stage} " in text for stage in Stage)
    assert "…" not in text
    assert "WRONG" not in text


def test_a_log_is_gone_on_with_and_a_report_is_written(exported: Exported, tmp_path: Path) -> None:
    def bench(rounds: int, scenarios: str) -> BenchReport:
        log, folder = tmp_path / "bench.jsonl", tmp_path / "report"
        return run_bench(
            BenchRequest(["onnxruntime"], exported.bundle, None, rounds, scenarios=scenarios, log=log, report=folder)
        )

    first = bench(2, "next_phrase,stages")
    lines = (tmp_path / "bench.jsonl").read_text().splitlines()
    second = bench(4, "next_phrase,stages")
    assert (tmp_path / "bench.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert (first.settings.rounds, second.settings.rounds) == (2, 4)
    for row in first.latencies:
        assert row.summary.min_ms >= second.latency(row.contender, row.scenario, row.span).min_ms
    assert first.bundle.digest in (tmp_path / "bench.jsonl").read_text()
    with pytest.raises(BadInputError, match="scenarios"):
        bench(4, "next_phrase")
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["command"].startswith(
        f"rsrefseg bench --bundle {exported.bundle} --backends onnxruntime --rounds 4"
    )
    assert document == json.loads(json.dumps(second.as_dict()))
    assert "onnxruntime" in (tmp_path / "report" / "report.md").read_text()
    assert len(second.others_busy) == 4, "before and after, of both"
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInputError, match="is a file"):
        run_bench(BenchRequest(["onnxruntime"], exported.bundle, report=tmp_path / "bench.jsonl"))


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
    monkeypatch.setattr("rsrefseg.evaluation.models.find_spec", lambda name: None)
    bundle = Bundle.open(exported.bundle)
    opened, left_out = open_contenders(["torch", "auto"], bundle, None)
    assert [contender.name for contender in opened] == ["onnxruntime"]
    assert "pip install 'rsrefseg[train]'" in left_out[0].reason
    with pytest.raises(MissingPartError, match="rsrefseg\\[train\\]"):
        open_contenders(["torch"], bundle, None)


@pytest.mark.parametrize("names", [["tensorflow"], ["torch", "tensorflow"], [""], []])
def test_unknown_contenders_and_none_are_refused(exported: Exported, names: list[str]) -> None:
    with pytest.raises(
        BadInputError, match=r"unknown contender 'tensorflow': known are torch, torch-compile, .*auto|no contender"
    ):
        open_contenders(names, Bundle.open(exported.bundle), exported.run)


def test_what_disturbed_a_log_stays_told_when_it_is_gone_on_with(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench(rounds: int) -> BenchReport:
        log = tmp_path / "bench.jsonl"
        return run_bench(
            BenchRequest(["onnxruntime"], exported.bundle, None, rounds, scenarios="first_phrase", log=log)
        )

    monkeypatch.setattr("rsrefseg.bench.latency.bench.others_busy_share", lambda: 0.96)
    busy = bench(1)
    monkeypatch.setattr("rsrefseg.bench.latency.bench.others_busy_share", lambda: 0.0)
    for report in (busy, bench(2)):
        assert any("96% of the cores busy" in note for note in report.notes)


def test_what_attention_does_not_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, "bench", "--attention", "tiny", "--report", tmp_path / "report")
    assert_refused(ran, "--attention", "--report")
    assert not (tmp_path / "report").exists()


def test_a_place_that_takes_no_report_is_refused_before_anything_is_measured(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsrefseg.bench.latency.bench.Bundle.open", lambda path: pytest.fail("too late"))
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="cannot write a report"):
        run_bench(BenchRequest(["onnxruntime"], exported.bundle, report=tmp_path / "file" / "report"))


def test_a_fast_wrong_answer_is_marked_as_wrong(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = spoiled_bundle(
        exported.bundle, tmp_path / "bundle", Stage.SAM_DECODER, "norm_final_attn.weight", lambda values: values * 2
    )
    report = run_bench(BenchRequest(["onnxruntime"], spoiled, None, ROUNDS, scenarios="stages"))
    assert report.contenders[0].is_wrong
    options = ("--backends", "onnxruntime", "--rounds", "3", "--scenarios", "first_phrase", "--json")
    ran = run_here(capsys, "bench", "--bundle", spoiled, *options)
    assert ran.code == 1
    assert json.loads(ran.out)["contenders"][0]["agrees"] is False, "what was measured is printed all the same"
    assert "onnxruntime answered otherwise" in ran.err
    assert {row.span for row in report.latencies if row.wrong} == {TOTAL, Stage.SAM_DECODER}
    assert "WRONG: onnxruntime" in printed(report)
    assert report.ratios == ()


def test_an_engine_is_measured_without_pytorch(exported: Exported) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from rsrefseg.bench.latency.bench import BenchRequest, run_bench\n"
        f"report = run_bench(BenchRequest(['onnxruntime'], Path({str(exported.bundle)!r}), None, 3))\n"
        "print([contender.name for contender in report.contenders])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['onnxruntime']", done.stderr
