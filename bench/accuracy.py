"""``rsrefseg eval``: how well a model answers a data set, whoever runs it, under a protocol that is named."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.backends import Backend, parse_backend
from engines.errors import BadInputError
from engines.progress import ProgressLine

if TYPE_CHECKING:
    from rsrefseg.answers import Ask
    from rsrefseg.metrics import MetricsResult


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What to evaluate, on what, and how.

    The subject is one of: the shipped base (``base``), a bundle on a runtime (``bundle`` or ``backend`` given), or else
    a run (``run``, the latest by default).

    Attributes:
        data: data set.
        split: its split.
        run: run folder.
        base: the shipped base, before any training.
        bundle: bundle folder; with ``backend`` alone the default bundle.
        backend: runtime for the bundle; ``auto`` when only a bundle is given.
        protocol: one of :class:`rsrefseg.metrics.Protocol`.
        shuffle_phrases: ask with another phrase of the same image.
        resize_masks: resize masks of another size than their image instead of refusing them.

    Raises:
        BadInputError: an unknown protocol or backend, or more than one subject.
    """

    data: Path
    split: str = "test"
    run: Path | None = None
    base: bool = False
    bundle: Path | None = None
    backend: str | None = None
    protocol: str = "rsrefseg"
    shuffle_phrases: bool = False
    resize_masks: bool = False

    def __post_init__(self) -> None:
        from rsrefseg.metrics import Protocol

        if self.protocol not in tuple(Protocol):
            raise BadInputError(f"unknown protocol '{self.protocol}': choose one of {', '.join(Protocol)}")
        if self.backend is not None:
            parse_backend(self.backend)
        subjects = {"--base": self.base, "--run": self.run is not None, "--bundle or --backend": self.asks_bundle}
        if len(named := [name for name, given in subjects.items() if given]) > 1:
            raise BadInputError(f"{' and '.join(named)} name different models: give one of them")

    @property
    def asks_bundle(self) -> bool:
        """Whether a bundle is evaluated, by a runtime."""
        return self.bundle is not None or self.backend is not None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What a model scored.

    Attributes:
        subject: the model, in words.
        runtime: what ran it: ``torch`` or a backend's name.
        data: data set.
        split: its split.
        shuffled: whether each sample was asked with another phrase of its image.
        resized_masks: how many truths had another size than their image and were resized.
        metrics: the scores, their protocol among them.
    """

    subject: str
    runtime: str
    data: str
    split: str
    shuffled: bool
    resized_masks: int
    metrics: "MetricsResult"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "subject": self.subject,
            "runtime": self.runtime,
            "data": self.data,
            "split": self.split,
            "phrases": "shuffled" if self.shuffled else "own",
            "resized_masks": self.resized_masks,
            **self.metrics.as_dict(),
        }

    def render(self) -> Any:
        """Two tables for a person: the scores, and gIoU by class."""
        from rich.console import Group

        from bench.tables import plain_table

        metrics = self.metrics
        phrases = ", each asked with another phrase of its image" if self.shuffled else ""
        title = f"{self.subject} on {self.runtime}: {self.data}, split {self.split}, {metrics.samples} samples{phrases}"
        columns = {"gIoU": metrics.gIoU, "cIoU": metrics.cIoU}
        columns |= {f"Pr@{threshold}": share for threshold, share in metrics.precision_at.items()}
        scores = plain_table(f"{title}, protocol {metrics.protocol}", (), tuple(columns))
        scores.add_row(*(f"{value:.4f}" for value in columns.values()))
        classes = plain_table("by class", ("class",), ("gIoU", "samples"))
        for name, result in metrics.per_class.items():
            classes.add_row(name, f"{result.gIoU:.4f}", str(result.samples))
        notes = [f"{self.resized_masks} masks were resized to their image's size"] if self.resized_masks else []
        return Group(scores, classes, *notes)


class _Subject(NamedTuple):
    """A model that can be asked."""

    ask: "Ask"
    name: str
    runtime: str


def run_evaluation(request: EvaluationRequest) -> EvaluationReport:
    """Ask a model for every sample of a split and score its answers.

    Raises:
        BadInputError: the data set, split, run or bundle cannot be used as given.
        MissingPartError: the backend cannot run here, or the package has no shipped base.
        BundleError: the bundle is not whole.
    """
    from rsrefseg.answers import Answer, answer_samples, score
    from rsrefseg.data.loading import verify_images
    from rsrefseg.data.samples import open_dataset
    from rsrefseg.metrics import Protocol

    dataset = open_dataset(request.data)
    samples = dataset.split(request.split)
    verify_images(dataset, [request.split])
    resized = 0

    def counted(answers: Iterator[Answer]) -> Iterator[Answer]:
        nonlocal resized
        for answer in answers:
            resized += answer.resized
            yield answer

    with _subject(request) as subject, ProgressLine(f"evaluating {subject.name}") as progress:
        answers = answer_samples(
            subject.ask,
            samples,
            shuffle_phrases=request.shuffle_phrases,
            on_size_mismatch="resize" if request.resize_masks else "refuse",
            progress=progress.update,
        )
        metrics = score(counted(answers), Protocol(request.protocol))
    return EvaluationReport(
        subject=subject.name,
        runtime=subject.runtime,
        data=str(request.data),
        split=request.split,
        shuffled=request.shuffle_phrases,
        resized_masks=resized,
        metrics=metrics,
    )


@contextlib.contextmanager
def _subject(request: EvaluationRequest) -> Iterator[_Subject]:
    if request.asks_bundle:
        from engines.segmenter import Segmenter

        with Segmenter.open(request.bundle, request.backend or Backend.AUTO) as segmenter:
            stamp = ", random weights" if segmenter.bundle.manifest.provenance.random_weights else ""
            yield _Subject(segmenter.segment, f"bundle {segmenter.bundle.root}{stamp}", segmenter.engine.name)
        return
    from bench.models import base_model, run_model
    from rsrefseg.evaluate import asker

    model, tokenizer, source = base_model() if request.base else run_model(request.run)
    yield _Subject(asker(model, tokenizer), source, "torch")
