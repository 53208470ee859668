"""``rsrefseg parity --audit``: how much of float16's range the activations of every half block take, on real inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import finite
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.runs.run import exported_run

from .half_stages import HalfStages, as_tensors

HALF_MAX = 65504.0
WARN_ABOVE = 0.5
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class AuditRow:
    """The largest absolute value at one place.

    Attributes:
        stage: where.
        block: the half block: the unit that a precision plan can keep in float32.
        module: which of its modules.
        what: ``input`` or ``output`` of the block, ``output`` of a linear map or convolution, ``product`` of two
            activations, attention ``logits``.
        largest: over all reference samples; infinite where a value was not finite.
        kept: whether the bundle's plan keeps the block in float32.
    """

    stage: Stage
    block: str
    module: str
    what: str
    largest: float
    kept: bool

    @property
    def share(self) -> float:
        """Of 65,504, the largest number float16 holds."""
        return self.largest / HALF_MAX

    @property
    def warned(self) -> bool:
        """Whether it comes too near to float16's limit."""
        return not self.kept and not self.share <= WARN_ABOVE

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; what is not finite is null."""
        return {
            "stage": self.stage.value,
            "block": self.block,
            "module": self.module,
            "what": self.what,
            "largest": finite(self.largest),
            "share_of_float16": finite(self.share),
            "kept_float32": self.kept,
            "warned": self.warned,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All places of all stages.

    Attributes:
        source: the float32 model that was watched.
        samples: how many reference samples it ran on.
        rows: every place.
        largest_float32: by stage, the largest value in the parts that are always float32.
    """

    source: str
    samples: int
    rows: tuple[AuditRow, ...]
    largest_float32: dict[Stage, float]

    @property
    def holds(self) -> bool:
        """An audit warns; it does not judge."""
        return True

    @property
    def warnings(self) -> tuple[AuditRow, ...]:
        """Places above the limit, the largest first."""
        return tuple(sorted((row for row in self.rows if row.warned), key=lambda row: -row.share))

    def worst(self, stage: Stage) -> tuple[AuditRow, ...]:
        """A stage's largest places, and all that are warned of."""
        ordered = sorted((row for row in self.rows if row.stage is stage), key=lambda row: -row.share)
        return tuple(row for index, row in enumerate(ordered) if index < _SHOWN or row.warned)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "source": self.source,
            "samples": self.samples,
            "float16_max": HALF_MAX,
            "warn_above": WARN_ABOVE,
            "warnings": len(self.warnings),
            "largest_float32_part": {stage.value: finite(value) for stage, value in self.largest_float32.items()},
            "places": [row.as_dict() for row in self.rows],
        }

    def render(self) -> Any:
        """A table of the largest places and a line for each warning."""
        from rich.console import Group, RenderableType
        from rich.text import Text

        from rsrefseg.engines.system.tables import plain_table

        title = f"{self.source}, {self.samples} reference samples: largest activations of the half blocks"
        table = plain_table(title, ("stage", "place"), ("largest", "of 65,504"), last="")
        for stage in self.largest_float32:
            for row in self.worst(stage):
                verdict = Text("WARN", "bold red") if row.warned else Text("float32" if row.kept else "")
                table.add_row(stage, f"{row.module} {row.what}", _number(row.largest), f"{row.share:.2%}", verdict)
            table.add_row(stage, "float32 parts", _number(self.largest_float32[stage]), "", "", end_section=True)
        parts: list[RenderableType] = [table]
        for row in self.warnings:
            reach = f"reaches {_number(row.largest)}, {row.share:.0%} of what float16 holds"
            parts.append(Text(f"warning: {row.stage} {row.module} {row.what} {reach}", "bold red"))
        if self.warnings:
            parts.append("`rsrefseg parity --bisect` finds which blocks have to stay float32")
        else:
            parts.append(Text(f"no half block comes above {WARN_ABOVE:.0%} of what float16 holds", "green"))
        return Group(*parts)


def run_audit(bundle: Path | None, run: Path | None) -> AuditReport:
    """Watch the float32 model behind a bundle on the bundle's reference samples.

    Args:
        bundle: the bundle, of either precision; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run: the run it was exported from; default is the latest.

    Raises:
        BundleError: the bundle is not whole, or has no reference samples.
        BadInputError: a run whose model is not the one in the bundle.
        MissingPartError: PyTorch is not installed.
    """
    opened = Bundle.open(bundle)
    stages = HalfStages.of_bundle(opened, exported_run(opened.root, opened.manifest.provenance.checkpoint_sha256, run))
    return audit(stages)


def audit(stages: HalfStages) -> AuditReport:
    """Watch a float32 model on its samples."""
    rows: list[AuditRow] = []
    largest_float32: dict[Stage, float] = {}
    with ProgressLine("auditing activations") as progress:
        for done, stage in enumerate(stages.contracts, start=1):
            kept = {part.module for part in stages.plan.of(stage)}
            found, largest_float32[stage] = audit_stage(stages, stage)
            rows += [AuditRow(stage, *place, place[0] in kept) for place in found]
            progress.update(done, len(stages.contracts))
    return AuditReport(stages.source, len(stages.samples), tuple(rows), largest_float32)


def audit_stage(stages: HalfStages, stage: Stage) -> tuple[Sequence[tuple[str, str, str, float]], float]:
    """Places of one stage as (block, module, what, largest), and the largest value of its float32 parts."""
    from .activations import measure_activations

    contract = stages.contracts[stage]
    inputs = [as_tensors(sample.inputs(contract)) for sample in stages.samples]
    found = measure_activations(stage, stages.load(stage), contract, inputs)
    places = [(place.block, place.module, place.what, place.largest) for place in found.places]
    return places, found.largest_float32


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
