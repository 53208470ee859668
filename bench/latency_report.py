"""What a bench measured, for people and for programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.comparison import TensorError
from bench.machine import Machine
from bench.startup import Startup
from bench.statistics import Ratio, Summary
from bench.tolerances import Verdict
from bench.turns import WarmUp
from engines.bundle import Bundle


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """Which model was measured: ``digest`` is that of ``bundle.json`` and thereby of all its files."""

    path: str
    digest: str
    preset: str
    precision: Mapping[str, str]
    checkpoint_sha256: str | None
    size_mib: float

    @classmethod
    def of(cls, bundle: Bundle) -> "BundleFacts":
        """Read them off an opened bundle."""
        manifest = bundle.manifest
        graphs = [file for record in manifest.stages.values() for file in (record.graph, *record.data)]
        return cls(
            path=str(bundle.root),
            digest=bundle.digest,
            preset=manifest.preset,
            precision={stage.value: record.precision for stage, record in manifest.stages.items()},
            checkpoint_sha256=manifest.provenance.checkpoint_sha256,
            size_mib=sum(file.size_bytes for file in graphs) / 2**20,
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """How it was measured.

    Attributes:
        rounds: of turns.
        turns_per_round: of each contender.
        settle_ms: pause before each turn.
        picture: height and width of what was asked about, px.
        image_size: side of the networks' input, px.
    """

    rounds: int
    turns_per_round: int
    settle_ms: float
    picture: tuple[int, int]
    image_size: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a contender's mask logits are from those FP32 PyTorch gave at export, and whether that is near enough."""

    error: TensorError
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        """Whether its speed counts: a fast wrong answer is none."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**self.error.as_dict(), "holds": self.holds}


@dataclass(frozen=True, slots=True)
class ContenderFacts:
    """One contender besides its timings.

    Attributes:
        name: as ``--backends`` takes it.
        threads: CPU threads it computed with.
        providers: what really ran each stage.
        startup: times and memory of a process of its own.
        agreement: with FP32 PyTorch, ``None`` for a bundle without reference samples.
        warm_up: before the first round.
    """

    name: str
    threads: int
    providers: Mapping[str, str]
    startup: Startup
    agreement: Agreement | None
    warm_up: WarmUp

    @property
    def is_wrong(self) -> bool:
        """Whether it is known to answer otherwise than PyTorch."""
        return self.agreement is not None and not self.agreement.holds

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "threads": self.threads,
            "providers": dict(self.providers),
            "startup": self.startup.as_dict(),
            "agreement": self.agreement.as_dict() if self.agreement is not None else None,
            "warm_up": asdict(self.warm_up),
        }


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One span of one scenario, of one contender."""

    contender: str
    scenario: str
    span: str
    summary: Summary

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "contender": self.contender,
            "scenario": self.scenario,
            "span": self.span,
            **self.summary.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class RatioRow:
    """How many times faster than the reference contender one is, in one span."""

    contender: str
    reference: str
    scenario: str
    span: str
    ratio: Ratio

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "contender": self.contender,
            "reference": self.reference,
            "scenario": self.scenario,
            "span": self.span,
            **self.ratio.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything a bench measured and what it was measured on.

    Attributes:
        bundle: which model.
        machine: on what.
        settings: how.
        contenders: whom.
        others_busy: share of the cores that other programs kept busy, before and after.
        notes: who was left out and why; whether the machine was busy.
        latencies: by contender, scenario and span.
        ratios: to the first contender.
    """

    bundle: BundleFacts
    machine: Machine
    settings: Settings
    contenders: tuple[ContenderFacts, ...]
    others_busy: tuple[float | None, ...]
    notes: tuple[str, ...]
    latencies: tuple[LatencyRow, ...]
    ratios: tuple[RatioRow, ...]

    def latency(self, contender: str, scenario: str, span: str) -> Summary:
        """One row's figures; ``KeyError`` when there is no such row."""
        return {(row.contender, row.scenario, row.span): row.summary for row in self.latencies}[
            contender, scenario, span
        ]

    def ratio(self, contender: str, scenario: str, span: str) -> Ratio:
        """One row's figures; ``KeyError`` when there is no such row."""
        return {(row.contender, row.scenario, row.span): row.ratio for row in self.ratios}[contender, scenario, span]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "bundle": asdict(self.bundle),
            "machine": self.machine.as_dict(),
            "settings": asdict(self.settings),
            "contenders": [contender.as_dict() for contender in self.contenders],
            "others_busy": list(self.others_busy),
            "notes": list(self.notes),
            "latencies": [row.as_dict() for row in self.latencies],
            "ratios": [row.as_dict() for row in self.ratios],
        }

    def render(self) -> Any:
        """Tables for a person."""
        from bench.latency_tables import render_bench

        return render_bench(self)
