"""What a bench measured, for people and for programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle

from ..system.machine import Machine
from .agreement import Agreement
from .rounds import WarmUp
from .startup import Startup
from .summary import Ratio, Summary


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """Which model was measured: ``digest`` is that of ``bundle.json`` and thereby of all its files."""

    path: str
    digest: str
    preset: str
    precision: Mapping[str, str]
    attention: str | None
    checkpoint_sha256: str | None
    random_weights: bool
    size_mib: float

    @classmethod
    def of(cls, bundle: Bundle) -> "BundleFacts":
        """Read them off an opened bundle."""
        manifest = bundle.manifest
        graphs = [file for record in manifest.stages.values() for file in (record.graph, *record.data)]
        attention = next((record.attention for record in manifest.stages.values() if record.attention), None)
        return cls(
            path=str(bundle.root),
            digest=bundle.digest,
            preset=manifest.preset,
            precision={stage.value: record.precision for stage, record in manifest.stages.items()},
            attention=str(attention) if attention is not None else None,
            checkpoint_sha256=manifest.provenance.checkpoint_sha256,
            random_weights=manifest.provenance.random_weights,
            size_mib=sum(file.size_bytes for file in graphs) / 2**20,
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """How it was measured.

    Attributes:
        scenarios: names, in running order.
        rounds: that were done.
        settle_ms: pause before each turn.
        picture: height and width of what was asked about, px.
        image_size: side of the networks' input, px.
    """

    scenarios: tuple[str, ...]
    rounds: int
    settle_ms: float
    picture: tuple[int, int]
    image_size: int


@dataclass(frozen=True, slots=True)
class ContenderFacts:
    """One contender besides its timings.

    Attributes:
        name: as ``--backends`` takes it.
        device: where it computed, a key of ``peaks``.
        threads: CPU threads it computed with.
        providers: what really ran each stage.
        precision: what each stage multiplied in.
        startup: times and memory of processes of its own.
        agreements: with FP32 PyTorch, by scenario and span; empty for a bundle without reference samples.
        warm_up: before the first round.
    """

    name: str
    device: str
    threads: int
    providers: Mapping[str, str]
    precision: Mapping[str, str]
    startup: Startup
    agreements: Mapping[tuple[str, str], Agreement]
    warm_up: WarmUp

    @property
    def failures(self) -> tuple[tuple[str, Agreement], ...]:
        """Where it is known to answer otherwise than PyTorch: scenario or stage, and how far off."""
        return tuple((_place(*key), one) for key, one in self.agreements.items() if not one.holds)

    @property
    def is_wrong(self) -> bool:
        """Whether it answers otherwise than PyTorch anywhere."""
        return bool(self.failures)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "device": self.device,
            "threads": self.threads,
            "providers": dict(self.providers),
            "precision": dict(self.precision),
            "startup": self.startup.as_dict(),
            "agrees": None if not self.agreements else not self.is_wrong,
            "warm_up": asdict(self.warm_up),
        }


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One span of one scenario, of one contender, and whether it counts.

    Attributes:
        contender, scenario, span: what was timed.
        summary: of its times.
        agreement: of what came of it, with FP32 PyTorch; ``None`` where there is nothing to compare.
        floor_ms: the least it could take by the device's measured peaks, see ``roofline``; ``None`` for the
            host's work, and where a peak is not known.
        images_per_s, phrases_per_s: by the median; ``None`` for spans within a scenario, images also where none is
            encoded.
    """

    contender: str
    scenario: str
    span: str
    summary: Summary
    agreement: Agreement | None
    floor_ms: float | None = None
    images_per_s: float | None = None
    phrases_per_s: float | None = None

    @property
    def wrong(self) -> bool:
        """Whether it is the time of a wrong answer."""
        return self.agreement is not None and not self.agreement.holds

    @property
    def floor_share(self) -> float | None:
        """The floor in the median: 1 is all that this machine can do."""
        return self.floor_ms / self.summary.p50_ms if self.floor_ms is not None else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "contender": self.contender,
            "scenario": self.scenario,
            "span": self.span,
            **self.summary.as_dict(),
            "floor_ms": self.floor_ms,
            "floor_share": self.floor_share,
            "images_per_s": self.images_per_s,
            "phrases_per_s": self.phrases_per_s,
            "agreement": self.agreement.as_dict() if self.agreement is not None else None,
            "wrong": self.wrong,
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
class ShareRow:
    """How long a scenario takes one contender as a share of its own first phrase."""

    contender: str
    scenario: str
    share: Ratio

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"contender": self.contender, "scenario": self.scenario, **self.share.as_dict()}


@dataclass(frozen=True, slots=True)
class RooflineRow:
    """A stage's time beside the least this machine could do it in, see ``roofline``.

    Attributes:
        contender, stage: whose.
        precision: multiplied in.
        flops, bytes: of one image and one phrase.
        floor_ms: by the machine's measured peaks.
        bound: what sets the floor: ``compute`` or ``memory``.
        p50_ms: measured.
        share: of the floor in what was measured; 1 is as fast as this machine can.
    """

    contender: str
    stage: str
    precision: str
    flops: int
    bytes: int
    floor_ms: float
    bound: str
    p50_ms: float
    share: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything a bench measured and what it was measured on.

    Attributes:
        date: when it ended, UTC.
        command: that asks for the same measurement.
        bundle: which model.
        machine: on what.
        settings: how.
        contenders: whom.
        others_busy: share of the cores that other programs kept busy, before and after.
        health: what the device told meanwhile, see ``health``.
        peaks: what each device can do, see ``peaks``.
        expected_floors_ms: of these graphs on well-known devices, see ``expected_floors``.
        notes: who was left out and why; whether the machine was busy, hot or slowed down.
        latencies: by scenario, contender and span.
        ratios: to the first contender.
        shares: of each contender's own first phrase.
        roofline: by contender and stage.
    """

    date: str
    command: str
    bundle: BundleFacts
    machine: Machine
    settings: Settings
    contenders: tuple[ContenderFacts, ...]
    others_busy: tuple[float | None, ...]
    health: Mapping[str, Any]
    peaks: Mapping[str, Any]
    expected_floors_ms: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    latencies: tuple[LatencyRow, ...]
    ratios: tuple[RatioRow, ...]
    shares: tuple[ShareRow, ...]
    roofline: tuple[RooflineRow, ...]

    def latency(self, contender: str, scenario: str, span: str) -> Summary:
        """One row's figures; ``KeyError`` when there is no such row."""
        return self.row(contender, scenario, span).summary

    def row(self, contender: str, scenario: str, span: str) -> LatencyRow:
        """One row; ``KeyError`` when there is no such row."""
        return {(row.contender, row.scenario, row.span): row for row in self.latencies}[contender, scenario, span]

    def ratio(self, contender: str, scenario: str, span: str) -> Ratio:
        """One row's figures; ``KeyError`` when there is no such row."""
        return {(row.contender, row.scenario, row.span): row.ratio for row in self.ratios}[contender, scenario, span]

    def share(self, contender: str, scenario: str) -> Ratio:
        """One row's figures; ``KeyError`` when there is no such row."""
        return {(row.contender, row.scenario): row.share for row in self.shares}[contender, scenario]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "date": self.date,
            "command": self.command,
            "bundle": asdict(self.bundle),
            "machine": self.machine.as_dict(),
            "settings": asdict(self.settings),
            "contenders": [contender.as_dict() for contender in self.contenders],
            "others_busy": list(self.others_busy),
            "health": dict(self.health),
            "peaks": dict(self.peaks),
            "expected_floors_ms": {device: dict(floors) for device, floors in self.expected_floors_ms.items()},
            "notes": list(self.notes),
            "latencies": [row.as_dict() for row in self.latencies],
            "ratios": [row.as_dict() for row in self.ratios],
            "shares": [row.as_dict() for row in self.shares],
            "roofline": [row.as_dict() for row in self.roofline],
        }

    def render(self) -> Any:
        """Tables for a person."""
        from .tables import render_bench

        return render_bench(self)


def _place(scenario: str, span: str) -> str:
    return scenario if span == "total" else span
