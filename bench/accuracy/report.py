"""What ``rsrefseg eval`` reports: the scores of one model, what was published beside them, and what was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .published import PublishedContext, PublishedRow

if TYPE_CHECKING:
    from rsrefseg.evaluation.metrics import MetricsResult

    from .worst_cases import WorstCase


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What a model scored.

    Attributes:
        subject: the model, in words.
        runtime: what ran it: ``torch`` or a backend's name.
        model_sha256: digest of its weights' file; None where there is none.
        bundle_sha256: digest of the bundle's manifest; None where no bundle was asked.
        data: data set.
        data_format: what it was recognised as.
        split: its split.
        shuffled: whether each sample was asked with another phrase of its image.
        resized_masks: how many truths had another size than their image and were resized.
        metrics: the scores, their protocol among them.
        published: others' rows for the same data, or why there are none.
        predictions: folder of the saved predictions.
        worst_cases_file: the contact sheet.
        worst_cases: the samples on it, worst first.
    """

    subject: str
    runtime: str
    model_sha256: str | None
    bundle_sha256: str | None
    data: str
    data_format: str
    split: str
    shuffled: bool
    resized_masks: int
    metrics: "MetricsResult"
    published: PublishedContext
    predictions: Path | None = None
    worst_cases_file: Path | None = None
    worst_cases: "tuple[WorstCase, ...]" = ()

    def record(self) -> dict[str, Any]:
        """What was measured, JSON-able: everything but where it was written."""
        return {
            "subject": self.subject,
            "runtime": self.runtime,
            "model_sha256": self.model_sha256,
            "bundle_sha256": self.bundle_sha256,
            "data": self.data,
            "data_format": self.data_format,
            "split": self.split,
            "phrases": "shuffled" if self.shuffled else "own",
            "resized_masks": self.resized_masks,
            **self.metrics.as_dict(),
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        document = self.record() | {"published": self.published.as_dict()}
        if self.predictions is not None:
            document["predictions"] = str(self.predictions)
        if self.worst_cases_file is not None:
            cases = [case.as_dict() for case in self.worst_cases]
            document["worst_cases"] = {"file": str(self.worst_cases_file), "samples": cases}
        return document

    @property
    def title(self) -> str:
        """Who was asked what, under which protocol."""
        phrases = ", each asked with another phrase of its image" if self.shuffled else ""
        asked = f"{self.data}, split {self.split}, {self.metrics.samples} samples{phrases}"
        return f"{self.subject} on {self.runtime}: {asked}, protocol {self.metrics.protocol}"

    def render(self) -> Any:
        """Two tables for a person, the scores and gIoU by class, and what to know about them."""
        from rich.console import Group

        from rsrefseg.engines.system.tables import plain_table

        metrics = self.metrics
        columns = {"gIoU": metrics.gIoU, "cIoU": metrics.cIoU}
        columns |= {f"Pr@{threshold}": share for threshold, share in metrics.precision_at.items()}
        measured = tuple(f"{value:.4f}" for value in columns.values())
        if self.published.rows:
            scores = plain_table(self.title, ("",), tuple(columns))
            scores.add_row("measured here", *measured)
            scores.add_section()
            for row in self.published.rows:
                scores.add_row(f"published: {row.method}", *_figures(row))
        else:
            scores = plain_table(self.title, (), tuple(columns))
            scores.add_row(*measured)
        classes = plain_table("by class", ("class",), ("gIoU", "samples"))
        for name, result in metrics.per_class.items():
            classes.add_row(name, f"{result.gIoU:.4f}", str(result.samples))
        return Group(scores, *self._published_notes(), classes, *self._notes())

    def _published_notes(self) -> list[str]:
        if not self.published.rows:
            return [f"no published rows beside it: {self.published.reason}", ""]
        from .published import SOURCE, SPLIT

        return [f"published: {SOURCE}, split {SPLIT}", *(f"note: {line}" for line in self.published.cautions), ""]

    def _notes(self) -> list[str]:
        notes = [f"{self.resized_masks} masks were resized to their image's size"] if self.resized_masks else []
        if self.predictions is not None:
            notes.append(f"{self.metrics.samples} predictions written to {self.predictions}")
        if self.worst_cases_file is not None:
            notes.append(f"the {len(self.worst_cases)} worst cases drawn in {self.worst_cases_file}")
        return notes


def _figures(row: PublishedRow) -> list[str]:
    return [
        "-" if value is None else f"{value:.4f}{'?' if name in row.unclear else ''}"
        for name, value in row.fractions().items()
    ]
