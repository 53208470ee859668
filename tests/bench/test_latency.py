"""A benchmark from bundle to report, with stubs for start-up and peaks (see ``tests/slow/test_bench.py``)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rsrefseg.bench.latency.bench import BenchRequest, measurements, run_bench
from rsrefseg.bench.latency.report import BenchReport, Measurement, RunnerRecord
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, SCENARIOS, STAGES, TOTAL
from rsrefseg.bench.latency.startup import Startup
from rsrefseg.bench.system.peaks import Peaks
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import NOT_JUDGED_NOTE
from rsrefseg.engines.bundle.reference import load_reference
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported, spoiled_bundle
from tests.support.made_bundle import change_manifest
from tests.support.places import Capsys
from tests.support.quantized import quantized

ROUNDS = 3
PEAKS = Peaks("cpu", {"fp32": 1e13}, 1e12, "by hand")


@pytest.fixture(scope="module", autouse=True)
def no_other_processes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        place = "rsrefseg.bench.latency.bench"
        startup = Startup(1.0, 2.0, 3.0, 2.5, 4.0, 5.0, 6.0)
        patch.setattr(f"{place}.measure_startups", lambda names, *_: [startup] * len(names))
        patch.setattr(f"{place}.measure_peaks", lambda threads, device: PEAKS)
        patch.setattr(f"{place}.others_busy_share", lambda: 0.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports") / "report"


@pytest.fixture(scope="module")
def report(exported: Exported, folder: Path, no_other_processes: None) -> BenchReport:
    request = BenchRequest("torch,onnxruntime", exported.bundle, exported.run, ROUNDS, report=folder)
    return run_bench(request)


def test_the_command_of_a_report_has_every_option_that_was_given() -> None:
    assert "--minutes 0" in BenchRequest("torch", minutes=0).command
    assert "--scenarios" not in BenchRequest("torch").command


def by_key(found: list[Measurement]) -> dict[tuple[str, str, str], Measurement]:
    return {(one.runner, one.scenario, one.span): one for one in found}


def test_every_span_of_every_runner_is_measured_with_its_error(report: BenchReport, exported: Exported) -> None:
    found = by_key(report.measurements)
    assert set(found) == {
        (name, scenario.name, span)
        for name in ("torch", "onnxruntime")
        for scenario in SCENARIOS
        for span in scenario.spans
    }
    for one in found.values():
        assert len(one.times_ms) == ROUNDS
        assert 0 < one.p50_low_ms <= one.p50_ms <= one.p90_ms <= one.p99_ms
        assert (one.ratio is None) == (one.runner == "torch")
        host = one.span.startswith("host_")
        assert (one.correctness is None) == (one.roofline is None) == host
        assert not one.wrong
    assert report.wrong_runners == []
    assert report.bundle_digest == Bundle.open(exported.bundle).digest
    assert any("brackets are their range" in note for note in report.notes)


def test_stages_have_the_roofline_of_the_bundles_graphs(report: BenchReport, exported: Exported) -> None:
    for stage, record in Bundle.open(exported.bundle).manifest.stages.items():
        roofline = by_key(report.measurements)["onnxruntime", STAGES.name, stage.value].roofline
        assert roofline is not None
        assert roofline.flops == record.flops
        assert roofline.least_ms == pytest.approx(max(roofline.flops / 1e13, roofline.bytes / 1e12) * 1e3)


def test_the_report_on_disk_is_the_one_returned(report: BenchReport, folder: Path, exported: Exported) -> None:
    document = json.loads((folder / "report.json").read_text())
    assert document == json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["command"].startswith(f"rsrefseg bench --backends torch,onnxruntime --bundle {exported.bundle}")
    assert (folder / "report.md").read_text() == report.to_markdown("report.png")
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert {"torch", "onnxruntime", "numpy"} <= set(document["machine"]["versions"])
    assert set(document["runners"][1]["providers"].values()) == {"CPUExecutionProvider"}


def test_manually_computed_values(exported: Exported) -> None:
    """Ratios and shares are medians over rounds, not ratios of medians; a batch counts its phrases."""
    scenarios = SCENARIOS[:3]
    rounds = {"slow": [20.0, 40.0, 90.0], "fast": [10.0, 10.0, 30.0]}
    times = {
        (name, scenario.name, TOTAL): [(1 + scenario.phrases // 8) * time_ms for time_ms in values]
        for name, values in rounds.items()
        for scenario in scenarios
    }
    runners = [
        RunnerRecord(name, "cpu", 1, {}, dict.fromkeys(Stage, "fp16"), Startup(), True, "", []) for name in rounds
    ]
    nothing: dict[str, dict] = {"slow": {}, "fast": {}}
    graphs = dict.fromkeys(rounds, Bundle.open(exported.bundle).manifest.stages)
    found = by_key(list(measurements(times, scenarios, runners, nothing, graphs, {"cpu": PEAKS})))
    fast, eight = found["fast", FIRST_PHRASE.name, TOTAL], found["fast", "next_8_phrases", TOTAL]
    assert fast.ratio is not None
    assert fast.ratio.median == pytest.approx(3.0)
    assert (fast.p50_ms, fast.phrases_per_s, fast.share_of_first) == (10.0, pytest.approx(100), None)
    assert (eight.phrases_per_s, eight.share_of_first) == (pytest.approx(400), pytest.approx(2.0))
    assert fast.roofline is None, "no peak in FP16"


def test_a_fast_wrong_result_is_marked_and_exits_with_1(exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    weight = "norm_final_attn.weight"
    spoiled = spoiled_bundle(exported.bundle, tmp_path / "bundle", Stage.SAM_DECODER, weight, lambda values: 2 * values)
    options = ("--backends", "onnxruntime", "--rounds", "3", "--scenarios", "stages")
    ran = run_here(capsys, "bench", "--bundle", spoiled, *options, "--json")
    assert ran.code == 1
    assert "onnxruntime differs from FP32 PyTorch" in ran.err
    document = json.loads(ran.out)
    assert document["runners"][0]["correct"] is False
    wrong = [one["span"] for one in document["measurements"] if (one["correctness"] or {}).get("failures")]
    assert wrong == [TOTAL, Stage.SAM_DECODER], "what was measured is reported all the same"
    assert "WRONG: onnxruntime" in run_here(capsys, "bench", "--bundle", spoiled, *options).out


def test_bundles_of_one_model_are_compared(exported: Exported, tmp_path: Path) -> None:
    int8 = quantized(Bundle.open(exported.bundle), tmp_path / "int8")
    names = ["onnxruntime", f"onnxruntime@{int8.root}"]
    report = run_bench(BenchRequest(",".join(names), exported.bundle, None, 3, scenarios="stages"))
    fp32, other = report.runners
    assert [fp32.name, other.name] == names
    assert (fp32.bundle_digest, other.bundle_digest) == (report.bundle_digest, int8.digest)
    assert (fp32.precisions[Stage.SAM_ENCODER], other.precisions[Stage.SAM_ENCODER]) == ("fp32", "int8")
    masks = sum(len(sample.phrases) for sample in load_reference(int8))
    assert fp32.mask_ious == [1.0] * masks
    assert 0.8 < min(other.mask_ious) < 1.0
    assert len(other.mask_ious) == masks
    assert f"{names[1]}: {NOT_JUDGED_NOTE}" in report.notes
    assert by_key(report.measurements)[names[1], STAGES.name, Stage.SAM_DECODER].roofline is not None
    alone = run_bench(BenchRequest("onnxruntime", int8.root, None, 1, scenarios="first_phrase"))
    assert alone.runners[0].mask_ious == other.mask_ious


def test_only_backends_take_a_bundle_and_only_of_the_same_model(
    exported: Exported, tmp_path: Path, capsys: Capsys
) -> None:
    other = Path(shutil.copytree(exported.bundle, tmp_path / "other"))
    change_manifest(other, lambda value: value["provenance"].update(checkpoint_sha256="1" * 64))
    for backends, fact in (
        (f"torch@{other}", "not a bundle"),
        (f"onnxruntime@{other}", "another model"),
        (f"onnxruntime@{tmp_path / 'none'}", "no bundle at"),
        (f"tensorflow@{other}", "unknown runner"),
    ):
        assert_refused(run_here(capsys, "bench", "--bundle", exported.bundle, "--backends", backends), fact)


def test_what_disturbs_is_noted(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsrefseg.bench.latency.bench.others_busy_share", lambda: 0.96)
    memory = psutil.virtual_memory()._replace(available=2 * 2**20)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    report = run_bench(BenchRequest("onnxruntime", exported.bundle, None, 1, scenarios="first_phrase"))
    assert any("96%" in note for note in report.notes)
    assert any("--backends" in note for note in report.notes), "more memory than is free"


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.setattr("rsrefseg.bench.latency.bench.Bundle.open", lambda path: pytest.fail("too late"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        assert_refused(run_here(capsys, "bench", "--bundle", exported.bundle, "--report", place), str(place))
    monkeypatch.setattr("rsrefseg.bench.latency.bench.find_spec", lambda name: None)
    assert_refused(run_here(capsys, "bench", "--report", tmp_path / "new"), "rsrefseg[report]")
    assert not (tmp_path / "new").exists()
