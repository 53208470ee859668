"""Report of a benchmark: records, and tables for the terminal and for Markdown."""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from msgspec import Struct
from rich.console import Group
from rich.text import Text

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table, format_sig3

from ..system.machine import Machine
from ..system.peaks import Peaks
from .correctness import Correctness
from .roofline import Roofline
from .scenarios import SCENARIOS, TOTAL, Scenario
from .startup import STARTS, Startup
from .summary import Ratio, Summary


class Measurement(Summary, frozen=True, kw_only=True):
    """Times of one span of a scenario on one runner.

    Attributes:
        runner, scenario, span: names of what was timed.
        times_ms: time of each round, in order.
        ratio: speed relative to the first runner, by round; ``None`` for the first runner.
        share_of_first: median ratio of the time to that of the same runner's first phrase in the same round; ``None``
            for a first phrase and for spans within a scenario.
        phrases_per_s: phrases per second at the median time; ``None`` for spans within a scenario.
        correctness: comparison with FP32 PyTorch; ``None`` for spans on the host.
        roofline: lower bound of the time on the device; ``None`` for spans on the host and without a known peak.
    """

    runner: str
    scenario: str
    span: str
    times_ms: list[float]
    ratio: Ratio | None = None
    share_of_first: float | None = None
    phrases_per_s: float | None = None
    correctness: Correctness | None = None
    roofline: Roofline | None = None

    @property
    def wrong(self) -> bool:
        """Whether the result exceeds the tolerances."""
        return self.correctness is not None and bool(self.correctness.failures)

    @property
    def error(self) -> str:
        """Error of the result as text."""
        return "" if self.correctness is None else f"{'WRONG ' if self.wrong else ''}{self.correctness.text}"


class RunnerRecord(Struct, frozen=True):
    """A runner without its times.

    Attributes:
        name: its name; see ``make_runner``.
        device: key of ``peaks``.
        threads: number of CPU threads.
        providers, precisions: device or provider, and precision of products, by stage.
        startup: start-up times and memory.
        correct: whether all its results are within the tolerances.
        bundle_digest: digest of its bundle.
        mask_ious: IoU of each mask of the reference samples with FP32 PyTorch; empty for random weights.
    """

    name: str
    device: str
    threads: int
    providers: dict[Stage, str]
    precisions: dict[Stage, str]
    startup: Startup
    correct: bool
    bundle_digest: str
    mask_ious: list[float]


class BenchReport(Record, frozen=True, kw_only=True):
    """Result of a benchmark.

    Attributes:
        date: end of the measurement, UTC.
        command: equivalent command line.
        bundle, preset, random_weights: the model.
        bundle_digest: digest of ``bundle.json``, which lists the digests of all files.
        image_size: height and width of the image in pixels.
        rounds: number of finished rounds.
        machine: the machine.
        runners: runners in the order of the tables; ratios refer to the first.
        measurements: measurements ordered by scenario, span and runner.
        peaks: peak performance by device.
        expected_rooflines_ms: rooflines of these graphs on known devices, see ``expected_rooflines``.
        others_busy: fraction of the cores that other programs used before and after the rounds.
        health: state of the machine during the rounds.
        notes: skipped runners and disturbances of the measurement.
    """

    date: str
    command: str
    bundle: str
    bundle_digest: str
    preset: str
    random_weights: bool
    image_size: tuple[int, int]
    rounds: int
    machine: Machine
    runners: list[RunnerRecord]
    measurements: list[Measurement]
    peaks: dict[str, Peaks]
    expected_rooflines_ms: dict[str, dict[str, float]]
    others_busy: list[float | None]
    health: dict[str, Any]
    notes: list[str]

    @property
    def wrong_runners(self) -> list[str]:
        """Names of runners whose results differ from FP32 PyTorch."""
        return [runner.name for runner in self.runners if not runner.correct]

    @property
    def failure(self) -> str:
        """One line if a runner is wrong, otherwise empty."""
        wrong = " and ".join(self.wrong_runners)
        return f"{wrong} differs from FP32 PyTorch (see WRONG)" if wrong else ""

    def render(self) -> Group:
        """Return facts, tables and notes for a terminal."""
        wrong = [Text(line, "bold red") for line in _wrong_lines(self)]
        notes = [Text(f"note: {note}", "yellow") for note in self.notes]
        return Group(*_facts(self), *(table.to_rich() for table in tables(self)), *wrong, *notes)

    def to_markdown(self, figure: str) -> str:
        """Return the report as Markdown; ``figure`` is the file name of the plot in the same folder."""
        parts = [
            f"# Latency of preset {self.preset}",
            "\n".join(f"- {line}" for line in _facts(self)),
            *(f"**{line}**" for line in _wrong_lines(self)),
            f"![First and next phrase, and the stages beside their rooflines]({figure})",
            *(f"## {table.to_markdown()}" for table in tables(self)),
            "\n".join(["## Notes\n", *(f"- {' '.join(note.split())}" for note in self.notes or ["none"])]),
        ]
        return "\n\n".join(parts) + "\n"


def tables(report: BenchReport) -> Iterator[Table]:
    """Yield all tables of a report."""
    timed = {one.scenario for one in report.measurements}
    for scenario in (one for one in SCENARIOS if one.name in timed):
        yield _scenario_table(report, scenario)
    known = [
        {"device": device, **{stage: format_sig3(least_ms) for stage, least_ms in by_stage.items()}}
        for device, by_stage in report.expected_rooflines_ms.items()
    ]
    yield _table("Rooflines of known devices, ms, one image and one phrase in FP16: nothing was run there", known)
    startups = [_startup_row(runner) for runner in report.runners]
    yield _table(f"Start-up, ms: medians of {STARTS} processes; the first one also predicts", startups, words=2)


def _facts(report: BenchReport) -> list[str]:
    """Return machine, software, bundle and command of the measurement, a line each."""
    machine = report.machine
    height, width = report.image_size
    weights = ", random weights" if report.random_weights else ""
    return [
        f"Machine: {machine.cpu}, {machine.usable_cores} of {machine.cores} cores, GPU: {machine.gpu or 'none'}",
        f"Software: {machine.system}, Python {machine.python}, "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        f"Bundle: {report.bundle}, preset {report.preset}, {report.bundle_digest[:12]}{weights}",
        *(
            f"Bundle of {runner.name}: {runner.bundle_digest[:12]}"
            for runner in report.runners
            if runner.bundle_digest != report.bundle_digest
        ),
        f"Measured: {report.date}, `{report.command}`",
        f"Image: {height} x {width} px; {report.rounds} interleaved rounds; in brackets 95% intervals of medians",
        *(f"Peaks of {device}: {_peaks(peaks)} ({peaks.how})" for device, peaks in report.peaks.items()),
    ]


def _peaks(peaks: Peaks) -> str:
    figures = [f"{kind.upper()} {format_sig3(value / 1e9)} GFLOP/s" for kind, value in peaks.flops_per_s.items()]
    bandwidth = peaks.bandwidth_bytes_per_s
    return ", ".join([*figures, *([] if bandwidth is None else [f"{format_sig3(bandwidth / 1e9)} GB/s"])])


def _wrong_lines(report: BenchReport) -> Iterator[str]:
    for name in report.wrong_runners:
        failures = [
            f"{one.scenario if one.span == TOTAL else one.span}: {failure}"
            for one in report.measurements
            if one.runner == name and one.correctness is not None
            for failure in one.correctness.failures
        ]
        yield f"WRONG: {name} differs from FP32 PyTorch, its times do not count ({'; '.join(failures)})"


def _scenario_table(report: BenchReport, scenario: Scenario) -> Table:
    ious = {runner.name: runner.mask_ious for runner in report.runners}
    rows = [
        {
            **({"span": one.span} if scenario.by_stage else {}),
            "runner": one.runner,
            "p50 ms": _with_interval(one.p50_ms, one.p50_low_ms, one.p50_high_ms),
            "p90": format_sig3(one.p90_ms),
            "p99": format_sig3(one.p99_ms),
            f"vs {report.runners[0].name}": ""
            if one.ratio is None
            else _with_interval(one.ratio.median, one.ratio.low, one.ratio.high, "x"),
            "phrases/s": _figure(one.phrases_per_s),
            "of first": "" if one.share_of_first is None else f"{one.share_of_first:.1%}",
            "roofline ms": "" if one.roofline is None else f"{format_sig3(one.roofline.least_ms)} {one.roofline.bound}",
            "of it": "" if one.roofline is None else f"{one.roofline.least_ms / one.p50_ms:.0%}",
            "mask IoU": _mean_and_worst([] if scenario.by_stage else ious[one.runner]),
            "error": one.error,
        }
        for one in report.measurements
        if one.scenario == scenario.name
    ]
    return _table(scenario.title, rows, words=1 + scenario.by_stage)


def _startup_row(runner: RunnerRecord) -> dict[str, str]:
    startup = runner.startup
    return {
        "runner": runner.name,
        "runs on": ", ".join(dict.fromkeys(runner.providers.values())),
        "import": _figure(startup.import_ms),
        "open": _figure(startup.open_ms),
        "load (least - most)": _with_interval(startup.load_ms, startup.load_least_ms, startup.load_most_ms),
        "first answer": _figure(startup.first_answer_ms),
        "peak MiB": _figure(startup.peak_memory_mib),
        "device MiB": _figure(startup.device_memory_mib),
        "error": startup.error or "",
    }


def _table(title: str, rows: list[dict[str, str]], words: int = 1) -> Table:
    """Return a table without columns that are empty in every row."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return Table(title, columns, [[row[name] for name in columns] for row in rows], words, columns[-1] == "error")


def _with_interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    if value is None or low is None or high is None:
        return ""
    return f"{format_sig3(value)}{unit} ({format_sig3(low)} - {format_sig3(high)})"


def _mean_and_worst(ious: Sequence[float]) -> str:
    return f"{mean(ious):.4f} (worst {min(ious):.3f})" if ious else ""


def _figure(value: float | None) -> str:
    return "" if value is None else format_sig3(value)
