"""``rsrefseg bench``: measures latency end to end and by stage, with correctness and roofline for each time."""

import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import msgspec

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import StageRecord
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.system.files import atomic_write_json, atomic_write_text
from rsrefseg.engines.system.progress import ProgressLine

from ..system.health import Watch
from ..system.machine import busy_notes, memory_notes, others_busy_share, this_machine
from ..system.peaks import Peaks, measure_peaks
from .correctness import Correctness, check, mask_ious
from .measure import LEAST_ROUNDS, Times, measure, warm_up
from .plot import draw_plot
from .report import BenchReport, Measurement, RunnerRecord
from .roofline import expected_rooflines, roofline_of
from .runner import PHRASE_STAGES, Runner
from .runners import open_runners
from .scenarios import FIRST_PHRASE, TOTAL, Scenario, parse_scenarios, workload_of
from .startup import measure_startups
from .summary import paired_ratio, summarise

_FIGURE = "report.png"


@dataclass(frozen=True)
class BenchRequest:
    """Options of a measurement.

    Attributes:
        backends: comma-separated names of runners (see ``make_runner``), in the order of the report; ratios refer to
            the first.
        bundle: bundle folder; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run: run with the bundle's model, for PyTorch; default is the latest run.
        rounds: maximum number of rounds.
        minutes: time after which no round begins, except the first ``LEAST_ROUNDS``.
        scenarios: comma-separated names of scenarios; empty for all.
        report: folder for ``report.md``, ``report.json`` and ``report.png``.
    """

    backends: str
    bundle: Path | None = None
    run: Path | None = None
    rounds: int = 30
    minutes: float = 15.0
    scenarios: str = ""
    report: Path | None = None

    @property
    def command(self) -> str:
        """The equivalent command line."""
        names = ("backends", "bundle", "run", "rounds", "minutes", "scenarios")
        options = {name: value for name in names if (value := getattr(self, name)) not in (None, "")}
        given = (part for name, value in options.items() for part in (f"--{name}", str(value)))
        return shlex.join(["rsrefseg", "bench", *given])


def run_bench(request: BenchRequest) -> BenchReport:
    """Measure runners on bundles of one model and compare them.

    Raises:
        BundleError: a bundle is incomplete or was changed, or the first has no reference samples.
        BadInputError: a runner or scenario is unknown, or the run does not contain the bundle's model.
        MissingPartError: a runner cannot run here, or matplotlib is missing for the report.
        OSError: the report cannot be written.
        RSRefSegError: a runner failed.
    """
    scenarios = parse_scenarios(request.scenarios)
    if request.report is not None:
        if find_spec("matplotlib") is None:
            raise MissingPartError("the figure of a report needs matplotlib: pip install 'rsrefseg[report]'")
        request.report.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=request.report):
            pass
    bundle = Bundle.open(request.bundle)
    runners, notes = open_runners(request.backends.split(","), bundle, request.run)
    with ExitStack() as stack:
        for runner in runners:
            stack.callback(runner.close)
        report = _measure(request, scenarios, bundle, runners, [*bundle.manifest.notes, *notes])
    if request.report is not None:  # the figure first: if it fails, no file changes
        draw_plot(report, request.report / _FIGURE)
        atomic_write_json(request.report / "report.json", report.to_dict())
        atomic_write_text(request.report / "report.md", report.to_markdown(_FIGURE))
    return report


def _measure(
    request: BenchRequest, scenarios: Sequence[Scenario], bundle: Bundle, runners: Sequence[Runner], notes: list[str]
) -> BenchReport:
    samples = load_reference(bundle)
    workload = workload_of(samples)
    correctness: dict[str, dict[tuple[str, str], Correctness]] = {}
    ious: dict[str, list[float]] = {}
    with ProgressLine("measuring", live=False) as progress:
        for line in notes:
            progress.say(line)
        busy = [others_busy_share()]
        peaks = {runner.device: measure_peaks(runner.threads, runner.device) for runner in runners}
        startups = measure_startups([one.name for one in runners], bundle, request.run, progress.say)
        for line in memory_notes([one.peak_memory_mib for one in startups]):
            notes.append(line)
            progress.say(line)
        watch = Watch()
        for runner in runners:
            progress.say(f"{runner.name}: loading, checking and warming up")
            runner.load()
            correctness[runner.name] = check(runner, scenarios, samples[0])
            if not bundle.manifest.provenance.random_weights:
                ious[runner.name] = mask_ious(runner, samples)
            if not warm_up(runner, scenarios, workload):
                notes.append(f"{runner.name} was not stable at the end of its warm-up: its first rounds may be slower")

        def on_round(done: int) -> None:
            watch.sample()
            progress.update(done, request.rounds)

        watch.begin()
        times = measure(runners, scenarios, workload, request.rounds, request.minutes, on_round)
        busy.append(others_busy_share())
    health = watch.summary()
    records = [
        RunnerRecord(
            name=runner.name,
            device=runner.device,
            threads=runner.threads,
            providers=runner.providers,
            precisions=runner.precisions,
            startup=startup,
            correct=not any(one.failures for one in correctness[runner.name].values()),
            bundle_digest=runner.bundle.digest,
            mask_ious=ious.get(runner.name, []),
        )
        for runner, startup in zip(runners, startups, strict=True)
    ]
    graphs = {runner.name: runner.bundle.manifest.stages for runner in runners}
    rounds = len(times[runners[0].name, FIRST_PHRASE.name, TOTAL])
    notes += [*busy_notes(busy), *health.notes(), *_notes(records, peaks, rounds)]
    return BenchReport(
        date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        command=request.command,
        bundle=str(bundle.root),
        bundle_digest=bundle.digest,
        preset=bundle.manifest.preset,
        random_weights=bundle.manifest.provenance.random_weights,
        image_size=workload.size,
        rounds=rounds,
        machine=this_machine(),
        runners=records,
        measurements=list(measurements(times, scenarios, records, correctness, graphs, peaks)),
        peaks=peaks,
        expected_rooflines_ms=expected_rooflines(bundle.manifest.stages),
        others_busy=busy,
        health=health.to_dict(),
        notes=notes,
    )


def measurements(
    times: Times,
    scenarios: Sequence[Scenario],
    runners: Sequence[RunnerRecord],
    correctness: Mapping[str, Mapping[tuple[str, str], Correctness]],
    graphs: Mapping[str, Mapping[Stage, StageRecord]],
    peaks: Mapping[str, Peaks],
) -> Iterator[Measurement]:
    """Yield summaries of times by scenario, span and runner; ratios refer to the first runner.

    ``graphs`` has the stages of each runner's bundle.
    """
    for scenario, span in ((one, span) for one in scenarios for span in one.spans):
        for runner in runners:
            times_ms = times[runner.name, scenario.name, span]
            summary, reference_ms = summarise(times_ms), times[runners[0].name, scenario.name, span]
            share = None
            if span == TOTAL and scenario is not FIRST_PHRASE:
                first_ms = times[runner.name, FIRST_PHRASE.name, TOTAL]
                share = median(mine / first for mine, first in zip(times_ms, first_ms, strict=True))
            stages = [graphs[runner.name][stage] for stage in _stages(scenario, span)]
            roofline = roofline_of(stages, peaks[runner.device], runner.precisions, scenario.phrases)
            yield Measurement(
                **msgspec.structs.asdict(summary),
                runner=runner.name,
                scenario=scenario.name,
                span=span,
                times_ms=times_ms,
                ratio=paired_ratio(reference_ms, times_ms) if runner is not runners[0] else None,
                share_of_first=share,
                phrases_per_s=1e3 * scenario.phrases / summary.p50_ms if span == TOTAL else None,
                correctness=correctness[runner.name].get((scenario.name, span)),
                roofline=roofline if stages else None,
            )


def _stages(scenario: Scenario, span: str) -> list[Stage]:
    """Return the stages of a span."""
    return [stage for stage in Stage if span in (TOTAL, stage) and (scenario.new_image or stage in PHRASE_STAGES)]


def _notes(runners: Sequence[RunnerRecord], peaks: Mapping[str, Peaks], rounds: int) -> Iterator[str]:
    """Yield notes about the limits of the results."""
    if rounds < LEAST_ROUNDS:
        yield f"{rounds} rounds: the brackets are their range, which is less than a 95% interval"
    for peak in peaks.values():
        yield from peak.notes()
    for runner in runners:
        known = peaks[runner.device].flops_per_s
        if known and (missing := sorted(set(runner.precisions.values()).difference(known))):
            kinds = " and ".join(missing).upper()
            yield f"no roofline for {runner.name}: no peak in {kinds} was measured"
