"""``rsrefseg parity --bisect``: the fewest blocks that have to stay float32 so that half precision holds."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import finite
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.runs.run import exported_run

from .audit import HALF_MAX, audit_stage
from .half_stages import HalfStages, StageCheck
from .search import smallest_set

if TYPE_CHECKING:
    from .plan import Fp32Part, PrecisionPlan


@dataclass(frozen=True, slots=True)
class StageBisection:
    """What was found out about one stage.

    Attributes:
        stage: which.
        blocks: how many half blocks it has.
        evaluations: how many plans were tried, the first one included.
        before: relative L2 error of the plan it began with.
        after: that of the plan it ended with; the same where the first plan held.
        found: blocks that have to stay float32 besides those of the first plan; None where nothing helps.
    """

    stage: Stage
    blocks: int
    evaluations: int
    before: float
    after: float
    found: "tuple[Fp32Part, ...] | None"

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.found is None:
            return "FAIL  not even with all blocks in float32"
        if not self.found:
            return "PASS"
        return f"PASS with {len(self.found)} block{'s' if len(self.found) > 1 else ''} in float32"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "stage": self.stage.value,
            "blocks": self.blocks,
            "evaluations": self.evaluations,
            "relative_l2_before": finite(self.before),
            "relative_l2_after": finite(self.after),
            "keep_float32": None if self.found is None else [part.module for part in self.found],
        }


@dataclass(frozen=True, slots=True)
class BisectReport:
    """The search through all stages.

    Attributes:
        source: the float32 model.
        stages: one entry each.
        plan: first plan and findings together.
        plan_path: where it was written; None where the first plan holds or nothing does.
        command: exports by it.
    """

    source: str
    stages: tuple[StageBisection, ...]
    plan: "PrecisionPlan"
    plan_path: str | None
    command: str

    @property
    def holds(self) -> bool:
        """Whether there is a plan that holds in every stage."""
        return all(stage.found is not None for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "holds": self.holds,
            "source": self.source,
            "evaluations": sum(stage.evaluations for stage in self.stages),
            "stages": [stage.as_dict() for stage in self.stages],
            "plan": self.plan.to_json(),
            "plan_path": self.plan_path,
            "command": self.command,
        }

    def render(self) -> Any:
        """A table, the blocks that were found, and what to do with them."""
        from rich.console import Group, RenderableType
        from rich.text import Text

        from rsrefseg.engines.system.tables import plain_table

        figures = ("blocks", "tried", "rel. L2", "with the plan")
        table = plain_table(f"{self.source} in half precision (PyTorch, CPU)", ("stage",), figures, last="")
        for stage in self.stages:
            colour = "green" if stage.found is not None else "bold red"
            after = f"{stage.after:.1e}" if stage.found else ""
            counts = (str(stage.blocks), str(stage.evaluations), f"{stage.before:.1e}", after)
            table.add_row(stage.stage, *counts, Text(stage.verdict, colour))
        parts: list[RenderableType] = [table]
        parts += [
            f"keep float32: {stage.stage} {part.module} ({part.reason})"
            for stage in self.stages
            for part in stage.found or ()
        ]
        if not self.holds:
            parts.append(Text("no plan holds: the stages marked FAIL differ for another reason", "bold red"))
        elif self.plan_path is None:
            parts.append(Text("half precision holds as it is: nothing else has to stay float32", "green"))
        else:
            parts.append(f"plan written to {self.plan_path}; export with\n\n    {self.command}\n")
        return Group(*parts)


def run_bisect(bundle: Path | None, run: Path | None, plan_out: Path) -> BisectReport:
    """Try half precision stage by stage; where it fails, find the blocks that have to stay float32.

    Begins with the bundle's own plan, or the default one for a float32 bundle.

    Args:
        bundle: the bundle, of either precision; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run: the run it was exported from; default is the latest.
        plan_out: where a plan goes, if one is needed and found.

    Raises:
        BundleError: the bundle is not whole, or has no reference samples.
        BadInputError: a run whose model is not the one in the bundle, or ``plan_out`` is a folder.
        MissingPartError: PyTorch is not installed.
    """
    from .plan import write_plan

    if plan_out.is_dir():
        raise BadInputError(f"'{plan_out}' is a folder: give --plan a file to write")
    opened = Bundle.open(bundle)
    found_run = exported_run(opened.root, opened.manifest.provenance.checkpoint_sha256, run)
    stages = HalfStages.of_bundle(opened, found_run)
    results, plan = bisect(stages)
    needed = any(result.found for result in results)
    report = BisectReport(
        source=stages.source,
        stages=results,
        plan=plan,
        plan_path=str(plan_out) if needed else None,
        command=shlex.join(
            ["rsrefseg", "export", str(found_run.path), "--fp16", *(["--plan", str(plan_out)] * needed)]
        ),
    )
    if needed and report.holds:
        write_plan(plan_out, plan)
    return report


def bisect(stages: HalfStages) -> "tuple[tuple[StageBisection, ...], PrecisionPlan]":
    """Search every stage; the plan is the first one with all findings."""
    results, plan = [], stages.plan
    with ProgressLine("bisecting half precision") as progress:
        for done, stage in enumerate(stages.contracts, start=1):
            result = bisect_stage(stages, stage)
            results.append(result)
            plan = plan.with_blocks(stage, result.found or ())
            progress.update(done, len(stages.contracts))
    return tuple(results), plan


def bisect_stage(stages: HalfStages, stage: Stage) -> StageBisection:
    """Search one stage, its blocks in the order of how much of float16's range they take."""
    from .plan import Fp32Part

    kept = stages.plan.of(stage)
    checks: dict[frozenset[str], StageCheck] = {}

    def holds(blocks: frozenset[str]) -> bool:
        checks[blocks] = stages.check(stage, (*kept, *(Fp32Part(block, "tried") for block in sorted(blocks))))
        return checks[blocks].passed

    names = stages.blocks(stage)
    if holds(frozenset()):
        error = checks[frozenset()].error.relative_l2
        return StageBisection(stage, len(names), 1, error, error, ())
    largest: dict[str, float] = {}
    for block, _, _, value in audit_stage(stages, stage)[0]:
        largest[block] = max(largest.get(block, 0.0), value)
    already = {part.module for part in kept}
    suspects = sorted((name for name in names if name not in already), key=lambda name: -largest.get(name, 0.0))
    found = smallest_set(suspects, lambda blocks: checks[blocks].passed if blocks in checks else holds(blocks))
    before = checks[frozenset()].error.relative_l2
    if found is None:
        return StageBisection(stage, len(names), len(checks), before, before, None)
    after = checks[frozenset(found)].error.relative_l2
    reasons = tuple(Fp32Part(block, _reason(largest.get(block, 0.0), before)) for block in found)
    return StageBisection(stage, len(names), len(checks), before, after, reasons)


def _reason(largest: float, error: float) -> str:
    if largest > HALF_MAX:
        return f"activations reach {largest:,.0f}, float16 ends at 65,504"
    return f"in half precision the stage is off by {error:.1e} (relative L2), activations reach {largest:,.0f}"
