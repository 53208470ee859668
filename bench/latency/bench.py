"""``rsrefseg bench``: latency end to end and by stage, contenders in turn, with error and floor beside each time."""

import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.reference import ReferenceSample, load_reference
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_json, atomic_write_text
from rsrefseg.engines.system.progress import ProgressLine

from ..system.health import Watch
from ..system.machine import Machine, busy_notes, free_memory_mib, memory_notes, others_busy_share, this_machine
from ..system.peaks import Peaks, measure_peaks
from .agreement import agreements_of
from .journal import Journal, open_journal
from .markdown import render_markdown
from .plot import check_plotting, draw_plot
from .report import BenchReport, BundleFacts, ContenderFacts, Settings
from .roofline import expected_floors
from .rounds import SETTLE_MS, Observation, take_turns, warm_up
from .rows import latency_rows, ratio_rows, roofline_rows, share_rows
from .runners import Contender, open_contenders
from .scenarios import Question, Scenario, parse_scenarios, question_for
from .startup import Startup, measure_startups

LEAST_ROUNDS = 5
_PICTURE = "report.png"


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What ``rsrefseg bench`` was asked for.

    Attributes:
        bundle: default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        backends: contenders by name, in the order of the report; ratios are to the first.
        run: the run that holds the bundle's model, for PyTorch; default is the latest.
        rounds: at most so many; in each, every contender has a turn.
        minutes: no round begins after so long, but for the first ``LEAST_ROUNDS``.
        scenarios: comma-separated names.
        log: JSON-lines file to keep every round in, and to go on with where it has some.
        report: folder for ``report.md``, ``report.json`` and ``report.png``.
    """

    backends: Sequence[str]
    bundle: Path | None = None
    run: Path | None = None
    rounds: int = 30
    minutes: float = 15.0
    scenarios: str = ""
    log: Path | None = None
    report: Path | None = None

    @property
    def command(self) -> str:
        """The command line that asks for the same."""
        options = {
            "--bundle": self.bundle,
            "--backends": ",".join(self.backends),
            "--run": self.run,
            "--rounds": self.rounds,
            "--minutes": self.minutes,
            "--scenarios": self.scenarios or None,
        }
        given = [f"{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
        return " ".join(["rsrefseg bench", *given])


def run_bench(request: BenchRequest) -> BenchReport:
    """Measure contenders against each other on one bundle.

    Raises:
        BundleError: the bundle is not whole.
        BadInputError: an unknown contender or scenario, a run that does not hold the bundle's model, or a log of
            another measurement.
        MissingPartError: a contender that was asked for cannot run here.
        RSRefSegError: the log or the report cannot be written.
    """
    scenarios = parse_scenarios(request.scenarios)
    if request.report is not None:
        check_report_folder(request.report)
        check_plotting()
    bundle = Bundle.open(request.bundle)
    contenders, left_out = open_contenders(list(request.backends), bundle, request.run)
    with ExitStack() as stack:
        for contender in contenders:
            stack.callback(contender.close)
        bench = _Bench(bundle, contenders, scenarios, request)
        report = bench.run([f"without {entry.name}: {entry.reason}" for entry in left_out])
    if request.report is not None:
        write_report(request.report, report)
    return report


class _Bench:
    """One measurement. What it holds is what it has found so far."""

    def __init__(
        self, bundle: Bundle, contenders: Sequence[Contender], scenarios: Sequence[Scenario], request: BenchRequest
    ) -> None:
        self.bundle, self.contenders, self.scenarios, self.request = bundle, contenders, scenarios, request
        self.machine: Machine = this_machine()
        self.question: Question = question_for(bundle)
        self.sample: ReferenceSample | None = (
            load_reference(bundle)[0] if bundle.manifest.reference is not None else None
        )
        self.journal: Journal | None = None
        if request.log is not None:
            self.journal = open_journal(request.log, self._identity())
        self.observations: list[Observation] = list(self.journal.observations) if self.journal else []

    def run(self, notes: list[str]) -> BenchReport:
        """Everything, in the order that disturbs the least."""
        notes = [*self.bundle.manifest.provenance.notes, *notes]
        if self.sample is None:
            notes.append("the bundle has no reference samples: nothing tells whether these answers are right")
        watch = Watch()
        busy: list[float | None] = [entry["share"] for entry in self._kept("busy")]
        peaks = _best([_peaks_of(entry) for entry in self._kept("peaks")])
        with ProgressLine("measuring", live=False) as progress:
            for note in notes:
                progress.say(note)
            if self.observations:
                progress.say(f"going on with '{self.request.log}' after {self.rounds_done} rounds")
            busy.append(self._look_for_others())
            peaks = _best([peaks, self._measure_peaks()])
            names = [contender.name for contender in self.contenders]
            startups = measure_startups(names, self.bundle, self.request.run, progress.say)
            for note in memory_notes([startup.peak_memory_mib for startup in startups], free_memory_mib()):
                notes.append(note)
                progress.say(note)
            entrants, facts = [], []
            for contender, startup in zip(self.contenders, startups, strict=True):
                progress.say(f"{contender.name}: loading, agreement, warm-up")
                fact = self._prepare(contender, startup)
                facts.append(fact)
                entrants.append((contender, fact.warm_up))
                if not fact.warm_up.stable:
                    notes.append(_unsettled(fact))
            watch.begin()

            def on_round(number: int, seen: list[Observation]) -> None:
                watch.sample()
                self.observations += seen
                if self.journal is not None:
                    self.journal.append_round(seen)
                progress.update(number + 1, self.request.rounds)

            take_turns(
                entrants,
                self.scenarios,
                self.question,
                range(self.rounds_done, self.request.rounds),
                time.monotonic() + 60 * self.request.minutes,
                min(LEAST_ROUNDS, self.request.rounds),
                on_round,
            )
            busy.append(self._look_for_others())
            peaks = _best([peaks, self._measure_peaks()])
        health = watch.summary()
        notes += [*busy_notes(busy), *health.notes(), *(note for found in peaks.values() for note in found.notes())]
        notes += [note for fact in facts if (note := _without_floor(fact, peaks[fact.device]))]
        return self._report(facts, busy, peaks, health.as_dict(), notes)

    def _kept(self, kind: str) -> list[dict[str, Any]]:
        """What earlier processes of this measurement left in the log."""
        return self.journal.entries(kind) if self.journal is not None else []

    def _look_for_others(self) -> float | None:
        share = others_busy_share()
        if self.journal is not None:
            self.journal.append("busy", {"share": share})
        return share

    def _measure_peaks(self) -> dict[str, Peaks]:
        """Of every device that somebody computes on, now; kept in the log."""
        devices = dict.fromkeys(contender.device for contender in self.contenders)
        found = {device: measure_peaks(self.contenders[0].threads, device) for device in devices}
        if self.journal is not None:
            self.journal.append("peaks", {"devices": {device: one.as_dict() for device, one in found.items()}})
        return found

    @property
    def rounds_done(self) -> int:
        """Whole rounds, those of the log included."""
        return max((seen.round for seen in self.observations), default=-1) + 1

    def _prepare(self, contender: Contender, startup: Startup) -> ContenderFacts:
        contender.load()
        agreements = agreements_of(contender, self.scenarios, self.sample) if self.sample is not None else {}
        warm = warm_up(contender, self.scenarios, self.question)
        return ContenderFacts(
            name=contender.name,
            device=contender.device,
            threads=contender.threads,
            providers=contender.providers(),
            precision={stage.value: contender.precision(stage) for stage in self.bundle.manifest.stages},
            startup=startup,
            agreements=agreements,
            warm_up=warm,
        )

    def _identity(self) -> dict[str, object]:
        """What a log must have been begun with to be gone on with."""
        return {
            "bundle": self.bundle.digest,
            "machine": self.machine.as_dict(),
            "contenders": [contender.name for contender in self.contenders],
            "scenarios": [scenario.name for scenario in self.scenarios],
        }

    def _report(
        self,
        facts: Sequence[ContenderFacts],
        busy: Sequence[float | None],
        peaks: Mapping[str, Peaks],
        health: dict[str, object],
        notes: Sequence[str],
    ) -> BenchReport:
        names = [contender.name for contender in self.contenders]
        latencies = latency_rows(self.observations, facts, self.scenarios, self.bundle, peaks)
        return BenchReport(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self.request.command,
            bundle=BundleFacts.of(self.bundle),
            machine=self.machine,
            settings=Settings(
                scenarios=tuple(scenario.name for scenario in self.scenarios),
                rounds=self.rounds_done,
                settle_ms=SETTLE_MS,
                picture=self.question.size,
                image_size=self.question.image_size,
            ),
            contenders=tuple(facts),
            others_busy=tuple(busy),
            health=health,
            peaks={device: found.as_dict() for device, found in peaks.items()},
            expected_floors_ms=expected_floors(self.bundle.manifest.stages),
            notes=tuple(notes),
            latencies=latencies,
            ratios=ratio_rows(self.observations, names, self.scenarios),
            shares=share_rows(self.observations, names, self.scenarios),
            roofline=roofline_rows(latencies, facts, self.bundle, peaks),
        )


def _best(measured: Sequence[Mapping[str, Peaks]]) -> dict[str, Peaks]:
    """Of several measurements of the same devices."""
    best: dict[str, Peaks] = {}
    for found in measured:
        best |= {device: best[device].or_better(one) if device in best else one for device, one in found.items()}
    return best


def _peaks_of(entry: Mapping[str, Any]) -> dict[str, Peaks]:
    return {device: Peaks(**values) for device, values in entry["devices"].items()}


def _unsettled(fact: ContenderFacts) -> str:
    return (
        f"{fact.name} had not settled after {fact.warm_up.passes} passes of warming up: its first rounds may be slower"
    )


def _without_floor(fact: ContenderFacts, peaks: Peaks) -> str:
    """Nothing where the device has no peak at all, which its own note says."""
    missing = dict.fromkeys(one for one in fact.precision.values() if one not in peaks.flops_per_s)
    if not peaks.flops_per_s or not missing:
        return ""
    kinds = " and ".join(one.upper() for one in missing)
    return f"no floor for {fact.name}: no peak of {fact.device} in {kinds} was measured (on a CPU that takes PyTorch)"


def check_report_folder(folder: Path) -> None:
    """Refuse a place for the report before anything is measured.

    Raises:
        BadInputError: it is a file, or nothing can be written there.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"'{folder}' is a file: give a folder with --report")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInputError(f"cannot write a report to '{folder}': {error.strerror or error}") from error


def write_report(folder: Path, report: BenchReport) -> None:
    """Write the report as Markdown, JSON and a picture; the picture first: where it fails nothing is changed."""
    document = report.as_dict()
    draw_plot(document, folder / _PICTURE)
    atomic_write_json(folder / "report.json", document)
    atomic_write_text(folder / "report.md", render_markdown(document, _PICTURE))
