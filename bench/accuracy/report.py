"""Request and report of ``rsrefseg eval``: the scores of a model and published scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from rsrefseg.engines.backends import parse_backend
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.tables import Table

from .predictors import Predictor
from .published import SOURCE, SPLIT, PublishedContext

if TYPE_CHECKING:
    from rsrefseg.evaluation.metrics import MetricsResult

    from .worst_cases import WorstCase


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Model, data and options of an evaluation.

    The model is the shipped base (``base``), a bundle on a runtime (``bundle`` or ``backend`` given), or a run
    (``run``, by default the latest).

    Attributes:
        data: data set.
        split: split of the data set.
        run: run folder, or file of a merged model with ``tokenizer.json`` in its folder.
        base: evaluate the shipped base.
        bundle: bundle folder; if only ``backend`` is given, the default bundle.
        backend: runtime for the bundle; ``auto`` if only ``bundle`` is given.
        protocol: one of ``Protocol``.
        shuffle_phrases: give each sample the phrase of another object in its image.
        absent_below: masks are empty if the phrase's presence score is below this.
        resize_masks: resize masks of another size than their image instead of raising an error.
        images: image folder, if it is not the one of the format.
        save_predictions: folder for all predictions.
        worst_cases: PNG file for the samples with the lowest IoU.

    Raises:
        BadInputError: unknown protocol or backend, more than one model, or ``worst_cases`` is not a PNG file.
    """

    data: Path
    split: str = "test"
    run: Path | None = None
    base: bool = False
    bundle: Path | None = None
    backend: str | None = None
    protocol: str = "rsrefseg"
    shuffle_phrases: bool = False
    absent_below: float = 0.0
    resize_masks: bool = False
    images: Path | None = None
    save_predictions: Path | None = None
    worst_cases: Path | None = None

    def __post_init__(self) -> None:
        from rsrefseg.evaluation.metrics import Protocol

        if self.protocol not in tuple(Protocol):
            raise BadInputError(f"unknown protocol '{self.protocol}': choose one of {', '.join(Protocol)}")
        if self.backend is not None:
            parse_backend(self.backend)
        by_bundle = self.bundle is not None or self.backend is not None
        models = {"--base": self.base, "--run": self.run is not None, "--bundle or --backend": by_bundle}
        if len(named := [name for name, given in models.items() if given]) > 1:
            raise BadInputError(f"{' and '.join(named)} name different models: give one of them")
        if self.worst_cases is not None and (self.worst_cases.suffix.lower() != ".png" or self.worst_cases.is_dir()):
            raise BadInputError(f"--worst-cases writes a PNG file, not '{self.worst_cases}': use the suffix .png")


@dataclass(frozen=True)
class EvaluationReport:
    """Scores of a model.

    Attributes:
        request: the request.
        predictor: the model.
        data_format: detected format of the data set.
        resized_masks: number of annotated masks of another size than their image.
        metrics: scores and their protocol.
        published: published rows for the same data, or the reason why there are none.
        worst_cases: samples on the contact sheet, worst first.
    """

    request: EvaluationRequest
    predictor: Predictor
    data_format: str
    resized_masks: int
    metrics: "MetricsResult"
    published: PublishedContext
    worst_cases: "tuple[WorstCase, ...]" = ()

    def record(self) -> dict[str, Any]:
        """Return model, data and scores as a JSON-serialisable dict, without output paths."""
        return {
            "subject": self.predictor.name,
            "runtime": self.predictor.runtime,
            "model_sha256": self.predictor.model_sha256,
            "bundle_sha256": self.predictor.bundle_sha256,
            "notes": list(self.predictor.notes),
            "data": str(self.request.data),
            "data_format": self.data_format,
            "split": self.request.split,
            "phrases": "shuffled" if self.request.shuffle_phrases else "own",
            "absent_below": self.request.absent_below,
            "resized_masks": self.resized_masks,
            **self.metrics.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        document = self.record() | {"published": self.published.to_dict()}
        if self.request.save_predictions is not None:
            document["predictions"] = str(self.request.save_predictions)
        if self.request.worst_cases is not None:
            cases = [case.to_dict() for case in self.worst_cases]
            document["worst_cases"] = {"file": str(self.request.worst_cases), "samples": cases}
        return document

    @property
    def title(self) -> str:
        """Model, data and protocol as one line."""
        phrases = ", each with the phrase of another object in its image" if self.request.shuffle_phrases else ""
        data = f"{self.request.data}, split {self.request.split}, {self.metrics.samples} samples{phrases}"
        return f"{self.predictor.name} on {self.predictor.runtime}: {data}, protocol {self.request.protocol}"

    def render(self) -> Group:
        """Return tables of scores and of gIoU by class, and notes, for a terminal."""
        measured = {"gIoU": self.metrics.gIoU, "cIoU": self.metrics.cIoU}
        if self.metrics.n_acc is not None:
            measured |= {"N-acc": self.metrics.n_acc}
            measured |= {"T-acc": self.metrics.t_acc} if self.metrics.t_acc is not None else {}
        measured |= {f"Pr@{threshold}": share for threshold, share in self.metrics.precision_at.items()}
        scores = Table(self.title, ("", *measured))
        scores.add("measured here", *(f"{value:.4f}" for value in measured.values()))
        for method, row in self.published.rows.items():
            scores.add(f"published: {method}", *(f"{row[name]:.4f}" if name in row else "-" for name in measured))
        classes = Table("by class", ("class", "gIoU", "samples"))
        for name, result in self.metrics.per_class.items():
            classes.add(name, f"{result.gIoU:.4f}", str(result.samples))
        beside = [f"no published rows to compare: {self.published.reason}", ""]
        if self.published.rows:
            beside = [f"published: {SOURCE}, split {SPLIT}", *(f"note: {line}" for line in self.published.cautions), ""]
        return Group(scores.to_rich(), *beside, classes.to_rich(), *self._notes())

    def _notes(self) -> list[str]:
        without = self.metrics.no_target_samples
        notes = [f"note: {note}" for note in self.predictor.notes]
        notes += [f"{without} of the samples have no target"] if without else []
        notes += [f"{self.resized_masks} masks were resized to their image's size"] if self.resized_masks else []
        if self.request.save_predictions is not None:
            notes.append(f"{self.metrics.samples} predictions written to {self.request.save_predictions}")
        if self.request.worst_cases is not None:
            notes.append(f"the {len(self.worst_cases)} worst cases drawn in {self.request.worst_cases}")
        return notes
