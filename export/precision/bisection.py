"""``rsrefseg parity --bisect``: find a minimal set of blocks that must stay float32 for half precision to pass."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table

from .audit import audit_stage
from .half_blocks import half_blocks
from .half_model import HalfModel, StageCheck, open_half_model
from .plan import HALF_MAX, PrecisionPlan, plan_document, write_plan


class StageBisection(Record, frozen=True):
    """The result of bisecting one stage.

    Attributes:
        stage: the stage.
        blocks: number of half blocks in the stage.
        evaluations: number of plans tried, including the first one.
        relative_l2_before: error with the first plan.
        relative_l2_after: error with the last plan; equal to ``relative_l2_before`` if the first plan passes or none.
        keep_float32: blocks that must stay float32 besides those of the first plan, with reasons; None if no plan
            passes.
    """

    stage: Stage
    blocks: int
    evaluations: int
    relative_l2_before: float
    relative_l2_after: float
    keep_float32: dict[str, str] | None

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.keep_float32 is None:
            return "FAIL  not even with all blocks in float32"
        count = len(self.keep_float32)
        return f"PASS with {count} block{'s' if count > 1 else ''} in float32" if count else "PASS"


class BisectReport(Record, frozen=True):
    """The result of bisecting all stages.

    Attributes:
        run: folder of the model's run.
        stages: one result per stage.
        plan: the first plan combined with all findings.
        plan_out: file for the plan, if one is needed and found.
    """

    run: Path
    stages: tuple[StageBisection, ...]
    plan: PrecisionPlan
    plan_out: Path

    @property
    def holds(self) -> bool:
        """Whether every stage has a plan that passes."""
        return all(stage.keep_float32 is not None for stage in self.stages)

    @property
    def failure(self) -> str:
        """The failure in one line; empty if ``holds``."""
        return "" if self.holds else "no precision plan passes (see the rows marked FAIL)"

    @property
    def plan_path(self) -> str | None:
        """File of the plan; None if the first plan passes, or no plan does."""
        return str(self.plan_out) if self.holds and any(stage.keep_float32 for stage in self.stages) else None

    @property
    def command(self) -> str:
        """The command that exports with the plan."""
        options = ["--plan", self.plan_path] if self.plan_path is not None else []
        return shlex.join(["rsrefseg", "export", str(self.run), "--fp16", *options])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        stages = [stage.to_dict() for stage in self.stages]
        found = {"holds": self.holds, "plan_path": self.plan_path, "command": self.command}
        return {"run": str(self.run), "stages": stages, "plan": plan_document(self.plan), **found}

    def render(self) -> Any:
        """Return a table, the blocks that must stay float32, and the next command."""
        title = f"run {self.run} in half precision (PyTorch, CPU)"
        table = Table(title, ("stage", "blocks", "tried", "rel. L2", "with the plan", ""), verdict=True)
        for stage in self.stages:
            after = f"{stage.relative_l2_after:.1e}" if stage.keep_float32 else ""
            counts = (str(stage.blocks), str(stage.evaluations), f"{stage.relative_l2_before:.1e}", after)
            table.add(stage.stage, *counts, stage.verdict)
        parts: list[RenderableType] = [table.to_rich()]
        for stage in self.stages:
            parts += [
                f"keep float32: {stage.stage} {block} ({why})" for block, why in (stage.keep_float32 or {}).items()
            ]
        if not self.holds:
            parts.append(Text("no plan passes: the stages marked FAIL differ for another reason", "bold red"))
        elif self.plan_path is None:
            parts.append(Text("half precision passes: no other block must stay float32", "green"))
        else:
            parts.append(f"plan written to {self.plan_path}; export with\n\n    {self.command}\n")
        return Group(*parts)


def run_bisect(bundle: Path | None, run: Path | None, plan_out: Path) -> BisectReport:
    """Test half precision stage by stage; in a stage that fails, find the blocks that must stay float32.

    The first plan is that of the bundle, which is empty for a float32 bundle.

    Args:
        bundle: folder of the bundle, of either precision; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run: the run that the bundle was exported from; by default the latest.
        plan_out: file for the plan, written if one is needed and found.

    Raises:
        BadInputError: ``plan_out`` is a folder.
        RSRefSegError: see ``open_half_model``.
    """
    if plan_out.is_dir():
        raise BadInputError(f"'{plan_out}' is a folder: set --plan to a file")
    report = bisect(open_half_model(bundle, run), plan_out)
    if report.plan_path is not None:
        write_plan(plan_out, report.plan)
    return report


def bisect(model: HalfModel, plan_out: Path) -> BisectReport:
    """Bisect every stage and combine the first plan with all findings."""
    results, plan = [], dict(model.plan)
    for stage in model.stages("bisecting half precision"):
        result = bisect_stage(model, stage)
        results.append(result)
        if result.keep_float32:
            plan[stage] = {**plan.get(stage, {}), **result.keep_float32}
    return BisectReport(model.run, tuple(results), plan, plan_out)


def bisect_stage(model: HalfModel, stage: Stage) -> StageBisection:
    """Bisect one stage; blocks that use most of float16's range come first."""
    kept, names = model.plan.get(stage, {}), tuple(half_blocks(stage, model.load(stage)))
    checks: dict[frozenset[str], StageCheck] = {}

    def holds(blocks: frozenset[str]) -> bool:
        if blocks not in checks:
            checks[blocks] = model.check(stage, {**kept, **dict.fromkeys(blocks, "on trial")})
        return checks[blocks].passed

    def result(found: dict[str, str] | None) -> StageBisection:
        before, after = (checks[frozenset(blocks)].error.relative_l2 for blocks in ((), found or ()))
        return StageBisection(stage, len(names), len(checks), before, after, found)

    if holds(frozenset()):
        return result({})
    largest: dict[str, float] = {}
    for row in audit_stage(model, stage)[0]:
        largest[row.block] = max(largest.get(row.block, 0.0), row.largest)
    suspects = sorted((name for name in names if name not in kept), key=lambda name: -largest.get(name, 0.0))
    found = smallest_set(suspects, holds)
    error = checks[frozenset()].error.relative_l2
    return result(None if found is None else {block: _reason(largest.get(block, 0.0), error) for block in found})


def _reason(largest: float, error: float) -> str:
    if largest > HALF_MAX:
        return f"activations reach {largest:,.0f}, float16 ends at 65,504"
    return f"in half precision the stage is off by {error:.1e} (relative L2), activations reach {largest:,.0f}"


def smallest_set(candidates: Sequence[str], holds: Callable[[frozenset[str]], bool]) -> tuple[str, ...] | None:
    """Return a set of candidates that passes a trial, and from which no member can be removed.

    Assumes that a passing set still passes with more members. One culprit among n costs at most log2(n) + 4 different
    trials, two if it is first; each further one costs at most log2(n) + 2.

    Args:
        candidates: candidates in the order of suspicion, the most likely first.
        holds: returns whether a set passes; may be called twice for a set.

    Returns:
        The set in the order of its discovery; None if not even all candidates together pass.
    """
    found: tuple[str, ...] = ()
    pool = tuple(candidates)
    while not holds(frozenset(found)):
        # Find the smallest prefix of the pool that passes together with ``found``; try its first member first.
        low, high, middle = 0, len(pool), 1
        while high - low > 1:
            if holds(frozenset((*found, *pool[:middle]))):
                high = middle
            else:
                low = middle
            middle = (low + high) // 2
        if high == len(pool) and not holds(frozenset((*found, *pool))):
            return None
        found, pool = (*found, pool[high - 1]), pool[: high - 1]
    return found
