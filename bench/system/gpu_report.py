"""What ``make gpu-check`` found: one row for each command that ran or could not, and the machine they ran on."""

import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rsrefseg.engines.system.tables import plain_table

from .machine import Machine
from .nvidia_smi import ask

SCHEMA_VERSION = 1
_QUERY = ("name", "driver_version", "memory.total", "compute_cap")


class Outcome(StrEnum):
    """How a step ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU, as the driver tells it."""

    name: str
    driver: str
    memory_mib: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        action: the command's name.
        model: which bundle; empty where none is involved.
        backend: which runtimes; empty likewise.
        outcome: how it ended.
        reason: one line: why it failed or was skipped.
        seconds: it took.
        report: its own JSON.
    """

    action: str
    model: str
    backend: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    report: Mapping[str, Any] | None = None

    @property
    def figures(self) -> str:
        """What its report says, in a few words."""
        if self.report is None or self.action not in _FIGURES:
            return ""
        return _FIGURES[self.action](self.report)


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle that was checked.

    Attributes:
        name: in this report.
        precision: of its graphs.
        checkpoint_sha256: of the merged weights it was exported from.
        bundle_sha256: of its manifest, which lists the digests of all its files.
        random_weights: whether its weights were drawn, so that its masks mean nothing.
    """

    name: str
    precision: str
    checkpoint_sha256: str | None
    bundle_sha256: str
    random_weights: bool


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All steps so far.

    Attributes:
        date: of the start, UTC, ISO 8601.
        complete: whether the check came to its end.
        gpu: ``None`` where there is none.
        machine: processor, memory, versions.
        preset: of the random models.
        models: in the order they were made.
        steps: in the order they ran.
    """

    date: str
    complete: bool
    gpu: Gpu | None
    machine: Machine
    preset: str
    models: tuple[Model, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return all(step.outcome is not Outcome.FAILED for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "schema_version": SCHEMA_VERSION,
            "date": self.date,
            "complete": self.complete,
            "holds": self.holds,
            "gpu": asdict(self.gpu) if self.gpu is not None else None,
            "machine": self.machine.as_dict(),
            "preset": self.preset,
            "models": [asdict(model) for model in self.models],
            "steps": [asdict(step) for step in self.steps],
        }

    def render(self) -> Any:
        """A row for each step, then what failed or was left out and why."""
        from rich.console import Group
        from rich.text import Text

        gpu = f"{self.gpu.name}, driver {self.gpu.driver}" if self.gpu is not None else "no GPU"
        table = plain_table(f"{gpu}; {self.date}", ("step", "model", "backend"), ("s",), last="")
        for step in self.steps:
            cells = (step.action, step.model, step.backend, f"{step.seconds:.0f}" if step.seconds else "")
            table.add_row(*cells, f"{step.outcome}  {step.figures}".rstrip())
        told = [
            f"{step.outcome}: {' '.join(part for part in (step.action, step.backend) if part)} - {step.reason}"
            for step in self.steps
            if step.reason
        ]
        told.append("everything that ran holds" if self.holds else "a check does not hold")
        return Group(table, *(Text(line) for line in dict.fromkeys(told)))


def this_gpu() -> Gpu | None:
    """Ask the driver's own tool; a Jetson without it tells its board's name."""
    if (fields := ask(_QUERY)) is not None:
        return Gpu(*fields)
    is_board = platform.release().endswith("tegra") and shutil.which("nvidia-smi") is None
    return Gpu(platform.node(), "unknown", "unknown", "unknown") if is_board else None


def _parity_figures(report: Mapping[str, Any]) -> str:
    errors = [row["relative_l2"] for row in report["tensors"]]
    worst = "not finite" if None in errors else f"{max(errors):.1e}"
    return f"worst rel. L2 {worst}, mask IoU {report['masks']['iou_worst']:.4f}"


def _bench_figures(report: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{row['contender']} {row['scenario'].replace('_', ' ')} {row['p50_ms']:.1f} ms"
        for row in report.get("latencies", ())
        if row["span"] == "total" and row["scenario"] in ("first_phrase", "next_phrase")
    )


_FIGURES = {"parity": _parity_figures, "bench": _bench_figures}
