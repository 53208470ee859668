"""A parity report as tables for a person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rsrefseg.engines.bundle.tolerances import Verdict
from rsrefseg.engines.system.tables import plain_table

if TYPE_CHECKING:
    from .report import DataResult, MaskResult, ParityReport, TensorRow

_TITLES = {
    "stage": "each stage on the inputs PyTorch gave it",
    "chained": "chained: each stage on the engine's own outputs",
}


def render_parity(report: "ParityReport") -> Group:
    """All tables of a report and its conclusion."""
    checks = dict.fromkeys(row.check for row in report.tensors)
    parts: list[RenderableType] = [
        f"{report.bundle} ({report.precision}) on {report.backend} against FP32 PyTorch",
        *(_tensor_table(_TITLES[check], [row for row in report.tensors if row.check == check]) for check in checks),
        _mask_table(report.masks),
    ]
    if report.masks.flipped_ties:
        ties = f"{report.masks.flipped_ties} of the flipped pixels are ties"
        parts.append(f"{ties}: PyTorch's own logit there is nearer to 0 than the tolerance of logits")
    if report.data is not None:
        parts.append(_data_table(report.data))
    if not report.tokens_equal:
        parts.append(Text("FAIL  the bundle's tokenizer reads the reference phrases otherwise than training", "red"))
    parts += [Text(f"note: {note}", "yellow") for note in report.notes]
    parts.append(Text("parity holds", "green") if report.holds else Text("parity does not hold", "bold red"))
    return Group(*parts)


def _tensor_table(title: str, rows: Sequence["TensorRow"]) -> Table:
    figures = ("max error", "of max", "rel. L2", "cosine")
    table = plain_table(title, ("stage", "output"), figures, last="")
    for row in rows:
        error = row.error
        errors = (error.max_abs, error.share_of_max, error.relative_l2)
        table.add_row(
            row.stage, row.output, *(f"{value:.1e}" for value in errors), f"{error.cosine:.7f}", _verdict(row.verdicts)
        )
    return table


def _mask_table(result: "MaskResult") -> Table:
    figures = ("worst IoU", "mean IoU", "logit error", "flipped px")
    table = plain_table("end to end: from pixels and words to masks", ("masks",), figures, last="")
    share = max(row.logits.share_of_max for row in result.rows)
    pixels = sum(row.pixels for row in result.rows)
    table.add_row(
        str(len(result.rows)),
        f"{result.worst_iou:.6f}",
        f"{result.mean_iou:.6f}",
        f"{share:.1e}",
        f"{result.flipped_pixels:,} of {pixels:,}",
        _verdict(result.verdicts),
    )
    return table


def _data_table(result: "DataResult") -> Table:
    figures = ("gIoU torch", "gIoU engine", "difference", "worst IoU", "flipped px")
    table = plain_table(f"on {result.data}", ("samples",), figures, last="")
    table.add_row(
        str(result.samples),
        f"{result.torch_giou:.6f}",
        f"{result.engine_giou:.6f}",
        f"{result.giou_difference:+.6f}",
        f"{result.iou_worst:.6f}",
        f"{result.flipped_pixels:,}",
        _verdict(result.verdicts),
    )
    return table


def _verdict(verdicts: Sequence[Verdict]) -> Text:
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    return Text("\n".join(failed), "bold red") if failed else Text("PASS", "green")
