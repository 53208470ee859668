"""Report of a benchmark: equal tables in the terminal and in Markdown, equal values in JSON and plot."""

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import asdict, replace
from PIL import Image

from rsrefseg.bench.latency.correctness import Correctness
from rsrefseg.bench.latency.plot import draw_plot
from rsrefseg.bench.latency.report import BenchReport, Measurement, RunnerRecord, tables
from rsrefseg.bench.latency.roofline import Roofline
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, NEXT_PHRASE, STAGES, TOTAL
from rsrefseg.bench.latency.startup import Startup
from rsrefseg.bench.latency.summary import Ratio, summarise
from rsrefseg.bench.system.machine import this_machine
from rsrefseg.bench.system.peaks import Peaks
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.tolerances import Measure
from rsrefseg.engines.system.tables import format_sig3
from tests.support.commands import run_alone
from tests.support.printing import printed

SPEEDS = {"torch": 1.0, "onnxruntime": 3.2, "openvino": 8.5}
WRONG = "openvino"


def measurement(runner: str, scenario: str, span: str, time_ms: float) -> Measurement:
    wrong, host = runner == WRONG, span.startswith("host_")
    text = f"{0.1 if wrong else 1e-6:.1e}" if span != TOTAL else f"IoU {0.912 if wrong else 0.9991:.4f}"
    correctness = Correctness(("FAIL  too far",) if wrong else (), text, {Measure.SHARE_OF_MAX: 1e-6})
    speed = SPEEDS[runner]
    times_ms = [factor * time_ms / speed for factor in (0.95, 1.0, 1.05)]
    return Measurement(
        **asdict(summarise(times_ms)),
        runner=runner,
        scenario=scenario,
        span=span,
        times_ms=times_ms,
        ratio=Ratio(speed, 0.9 * speed, 1.1 * speed) if runner != "torch" else None,
        share_of_first=0.029 if scenario == NEXT_PHRASE.name else None,
        phrases_per_s=1e3 / times_ms[1] if span == TOTAL else None,
        correctness=None if host else correctness,
        roofline=None if host else Roofline(972_077_334_528, 374_700_000, 0.1 * time_ms, "compute"),
    )


@pytest.fixture
def report() -> BenchReport:
    """Return a complete report with three runners, the last of which is wrong."""
    spans_ms = {(FIRST_PHRASE.name, TOTAL): 18_000.0, (NEXT_PHRASE.name, TOTAL): 530.0}
    spans_ms |= {(STAGES.name, span): 100.0 * (number + 1) for number, span in enumerate(STAGES.spans)}
    runners = [
        RunnerRecord(
            name=name,
            device="cpu",
            threads=2,
            providers=dict.fromkeys(Stage, f"{name} on the CPU"),
            precisions=dict.fromkeys(Stage, "fp32"),
            startup=Startup(812.0, 1500.0, 3100.0, 2900.0, 4400.0, 9100.0, 5123.4),
            correct=name != WRONG,
            bundle_digest=("b" if name == WRONG else "1") * 64,
            mask_ious=[0.9, 1.0],
        )
        for name in SPEEDS
    ]
    return BenchReport(
        date="2026-01-02T03:04:05+00:00",
        command="rsrefseg bench --backends torch,onnxruntime,openvino",
        bundle="bundle",
        bundle_digest="1" * 64,
        preset="b",
        random_weights=False,
        image_size=(800, 1200),
        rounds=3,
        machine=this_machine(),
        runners=runners,
        measurements=[measurement(name, *key, time_ms) for key, time_ms in spans_ms.items() for name in SPEEDS],
        peaks={"cpu": Peaks("cpu", {"fp32": 2.05e11}, 3.1e10, "numpy")},
        expected_rooflines_ms={"H200": dict.fromkeys(Stage, 1.23) | {"sum": 6.15}},
        others_busy=[0.01, None],
        health={},
        notes=["the hypervisor took up to 7% of the cores\nor more"],
    )


def rows(report: BenchReport, title: str) -> list[dict[str, str]]:
    table = next(one for one in tables(report) if one.title.startswith(title))
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def all_right(report: BenchReport) -> BenchReport:
    measurements = [
        replace(one, correctness=one.correctness and replace(one.correctness, failures=()))
        for one in report.measurements
    ]
    return replace(report, measurements=measurements, runners=[replace(one, correct=True) for one in report.runners])


def test_rows_have_time_ratio_error_and_roofline_and_startup_its_steps(report: BenchReport) -> None:
    torch, onnxruntime, _ = rows(report, "Next phrase")
    low, middle, high = (format_sig3(factor * 530 / SPEEDS["onnxruntime"]) for factor in (0.95, 1, 1.05))
    assert onnxruntime["p50 ms"] == f"{middle} ({low} - {high})"
    assert onnxruntime["vs torch"] == "3.20x (2.88 - 3.52)"
    assert torch["vs torch"] == ""
    assert onnxruntime["error"] == "IoU 0.9991"
    assert onnxruntime["mask IoU"] == "0.9500 (worst 0.900)"
    assert "mask IoU" not in rows(report, "Stages one by one")[0]
    assert onnxruntime["of first"] == "2.9%"
    assert "of first" not in rows(report, "First phrase")[0], "a column that says nothing"
    assert len(rows(report, "Stages one by one")) == len(SPEEDS) * len(STAGES.spans)
    found = [row for row in rows(report, "Stages one by one") if row["span"] in tuple(Stage)]
    assert [(row["span"], row["runner"]) for row in found] == [(stage, name) for stage in Stage for name in SPEEDS]
    torch, onnxruntime, _ = found[:3]  # of the first stage
    assert (torch["roofline ms"], torch["of it"], onnxruntime["of it"]) == ("30.0 compute", "10%", "32%")
    row = rows(report, "Start-up")[0]
    assert (row["import"], row["open"], row["first answer"], row["peak MiB"]) == ("812", "1500", "9100", "5123")
    assert row["load (least - most)"] == "3100 (2900 - 4400)"


@pytest.mark.parametrize("render", [printed, lambda report: report.to_markdown("report.png")])
def test_a_wrong_runner_is_marked_wherever_its_times_are(report: BenchReport, render: object) -> None:
    assert callable(render)
    text = render(report)
    assert f"WRONG: {WRONG} " in text
    assert text.count("WRONG") == 1 + 2 + len(Stage), "scenarios and stages"
    assert "WRONG" not in render(all_right(report))


def test_markdown_terminal_and_json_agree(report: BenchReport) -> None:
    markdown, terminal = report.to_markdown("report.png"), printed(report, width=200)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for table in tables(report):
        assert f"## {table.to_markdown()}" in markdown
        assert all(cell in terminal for row in table.rows for cell in row)
    for one in document["measurements"]:
        assert format_sig3(one["p50_ms"]) in markdown
    assert [one["runner"] for one in document["measurements"] if one["correctness"] and one["correctness"]["failures"]]
    for fact in (
        report.date,
        report.command,
        report.bundle_digest[:12],
        "800 x 1200 px",
        report.machine.cpu,
        "openvino: bbbbbbbbbbbb",
    ):
        assert fact in markdown
        assert fact in terminal
    assert "](report.png)" in markdown
    assert "\n- the hypervisor took up to 7% of the cores or more\n" in markdown


def pixels(report: BenchReport, folder: Path) -> np.ndarray:
    draw_plot(report, folder / "report.png")
    with Image.open(folder / "report.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def blue(image: np.ndarray) -> int:
    """Return the number of pixels with the colour of the first series."""
    return int((image == (0x00, 0x72, 0xB2)).all(-1).sum())


def test_the_plot_hatches_wrong_bars(report: BenchReport, tmp_path: Path) -> None:
    drawn = pixels(report, tmp_path)
    assert drawn.shape[1] == 1800
    assert np.array_equal(drawn, pixels(report, tmp_path))
    assert blue(drawn) < 0.95 * blue(pixels(all_right(report), tmp_path))


def test_an_interval_without_end_does_not_shrink_the_bars(report: BenchReport, tmp_path: Path) -> None:
    first, *others = report.measurements
    disturbed = replace(report, measurements=[replace(first, p50_high_ms=1e6 * first.p50_high_ms), *others])
    assert blue(pixels(disturbed, tmp_path)) > 0.9 * blue(pixels(report, tmp_path))


def test_a_benchmark_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, rsrefseg.bench.latency.bench; print({'torch', 'onnx', 'matplotlib'} & sys.modules.keys())"
    done = run_alone(script=code)
    assert done.stdout == "set()\n", done.stderr
