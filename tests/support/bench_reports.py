"""A benchmark's report without a benchmark: three runners, the last of which is wrong."""

from rsrefseg.bench.latency.correctness import Correctness
from rsrefseg.bench.latency.report import BenchReport, Measurement, RunnerRecord
from rsrefseg.bench.latency.roofline import Roofline
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, NEXT_PHRASE, STAGES, TOTAL
from rsrefseg.bench.latency.startup import Startup
from rsrefseg.bench.latency.summary import Ratio
from rsrefseg.bench.system.machine import this_machine
from rsrefseg.bench.system.peaks import Peaks
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.tolerances import Measure

SPEEDS = {"torch": 1.0, "onnxruntime": 3.2, "openvino": 8.5}
WRONG = "openvino"


def measurement(runner: str, scenario: str, span: str, time_ms: float) -> Measurement:
    wrong, host = runner == WRONG, span.startswith("host_")
    text = f"{0.1 if wrong else 1e-6:.1e}" if span != TOTAL else f"IoU {0.912 if wrong else 0.9991:.4f}"
    correctness = Correctness(("FAIL  too far",) if wrong else (), text, {Measure.SHARE_OF_MAX: 1e-6})
    speed = SPEEDS[runner]
    p50_ms = time_ms / speed
    return Measurement(
        p50_ms=p50_ms,
        p90_ms=1.1 * p50_ms,
        p99_ms=1.25 * p50_ms,
        p50_low_ms=0.95 * p50_ms,
        p50_high_ms=1.05 * p50_ms,
        runner=runner,
        scenario=scenario,
        span=span,
        times_ms=[p50_ms] * 3,
        ratio=Ratio(speed, 0.9 * speed, 1.1 * speed) if runner != "torch" else None,
        share_of_first=0.029 if scenario == NEXT_PHRASE.name else None,
        phrases_per_s=1e3 / p50_ms if span == TOTAL else None,
        correctness=None if host else correctness,
        roofline=None if host else Roofline(972_077_334_528, 374_700_000, 0.1 * time_ms, "compute"),
    )


def made_report() -> BenchReport:
    """With everything in it."""
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
        )
        for name in SPEEDS
    ]
    return BenchReport(
        date="2026-01-02T03:04:05+00:00",
        command="rsrefseg bench --backends torch,onnxruntime,openvino",
        bundle="bundle",
        bundle_digest="113883c7b730" + "0" * 52,
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
