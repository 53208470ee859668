"""What ``rsrefseg eval`` reports: the scores of one model, published figures beside them, and what was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from rsrefseg.engines.system.tables import Table

from .published import SOURCE, SPLIT, PublishedContext

if TYPE_CHECKING:
    from rsrefseg.evaluation.metrics import MetricsResult

    from .worst_cases import WorstCase


@dataclass(frozen=True)
class EvaluationReport:
    """The scores of a model.

    Attributes:
        subject: the model, in words.
        runtime: ``torch`` or a backend's name.
        model_sha256: digest of its weights' file; None if there is none.
        bundle_sha256: digest of the bundle's manifest; None without a bundle.
        data: data set.
        data_format: as recognised.
        split: its split.
        shuffled: whether each sample got the phrase of another object in its image.
        resized_masks: number of truths of another size than their image.
        metrics: the scores and their protocol.
        published: published rows for the same data, or why there are none.
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
        """What was measured, JSON-able, without the places it was written to."""
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
        """Model, data and protocol."""
        phrases = ", each with the phrase of another object in its image" if self.shuffled else ""
        data = f"{self.data}, split {self.split}, {self.metrics.samples} samples{phrases}"
        return f"{self.subject} on {self.runtime}: {data}, protocol {self.metrics.protocol}"

    def render(self) -> Group:
        """The scores, gIoU by class, and notes, for a terminal."""
        measured = {"gIoU": self.metrics.gIoU, "cIoU": self.metrics.cIoU}
        measured |= {f"Pr@{threshold}": share for threshold, share in self.metrics.precision_at.items()}
        scores = Table(self.title, ("", *measured))
        scores.add("measured here", *(f"{value:.4f}" for value in measured.values()))
        for method, row in self.published.rows.items():
            scores.add(f"published: {method}", *(f"{row[name]:.4f}" if name in row else "-" for name in measured))
        classes = Table("by class", ("class", "gIoU", "samples"))
        for name, result in self.metrics.per_class.items():
            classes.add(name, f"{result.gIoU:.4f}", str(result.samples))
        return Group(scores.to_rich(), *self._published_notes(), classes.to_rich(), *self._notes())

    def _published_notes(self) -> list[str]:
        if not self.published.rows:
            return [f"no published rows beside it: {self.published.reason}", ""]
        return [f"published: {SOURCE}, split {SPLIT}", *(f"note: {line}" for line in self.published.cautions), ""]

    def _notes(self) -> list[str]:
        notes = [f"{self.resized_masks} masks were resized to their image's size"] if self.resized_masks else []
        if self.predictions is not None:
            notes.append(f"{self.metrics.samples} predictions written to {self.predictions}")
        if self.worst_cases_file is not None:
            notes.append(f"the {len(self.worst_cases)} worst cases drawn in {self.worst_cases_file}")
        return notes
