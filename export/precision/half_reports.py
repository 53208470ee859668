"""What ``rsrefseg parity`` can tell about half precision instead of comparing a runtime."""

from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .audit import AuditReport, run_audit
from .bisection import BisectReport, run_bisect


def half_report(
    bundle: Path | None, run: Path | None, *, audit: bool, plan_out: Path | None, data: Path | None
) -> AuditReport | BisectReport:
    """Audit or bisect.

    Args:
        bundle: default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run: the run it was exported from; default is the latest.
        audit: audit.
        plan_out: bisect, and write the plan there.
        data: refused: both work on the bundle's reference samples.

    Raises:
        BadInputError: options that do not go together.
        RSRefSegError: see ``run_audit`` and ``run_bisect``.
    """
    if audit and plan_out is not None:
        raise BadInputError("--audit and --bisect are two reports: give one of them")
    if data is not None:
        raise BadInputError("--audit and --bisect work on the bundle's reference samples: leave --data out")
    if plan_out is not None:
        return run_bisect(bundle, run, plan_out)
    return run_audit(bundle, run)
