"""``rsrefseg eval``: how well a model answers a data set, whoever runs it, under a protocol that is named."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsrefseg.engines.backends import parse_backend
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.progress import ProgressLine

from .predictions import PredictionFolder
from .predictors import Subject, open_subject
from .published import published_context
from .report import EvaluationReport
from .worst_cases import WorstCases, sheet_file

if TYPE_CHECKING:
    from rsrefseg.data.samples import Dataset, Sample
    from rsrefseg.evaluation.answers import Answer
    from rsrefseg.evaluation.metrics import MetricsResult, Overlap


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What to evaluate, on what, and how.

    The subject is one of: the shipped base (``base``), a bundle on a runtime (``bundle`` or ``backend`` given), or else
    a run (``run``, the latest by default).

    Attributes:
        data: data set.
        split: its split.
        run: run folder, or the file of a merged model with its tokenizer beside it.
        base: the shipped base, before any training.
        bundle: bundle folder; with ``backend`` alone the default bundle.
        backend: runtime for the bundle; ``auto`` when only a bundle is given.
        protocol: one of ``Protocol``.
        shuffle_phrases: ask with another phrase of the same image.
        resize_masks: resize masks of another size than their image instead of refusing them.
        images: folder of the data set's images, where it is not the format's own.
        save_predictions: folder to write every prediction into.
        worst_cases: PNG file to draw the samples of lowest IoU in.

    Raises:
        BadInputError: an unknown protocol or backend, more than one subject, or a sheet that is no PNG file.
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
    images: Path | None = None
    save_predictions: Path | None = None
    worst_cases: Path | None = None

    def __post_init__(self) -> None:
        from rsrefseg.evaluation.metrics import Protocol

        if self.protocol not in tuple(Protocol):
            raise BadInputError(f"unknown protocol '{self.protocol}': choose one of {', '.join(Protocol)}")
        if self.backend is not None:
            parse_backend(self.backend)
        asks_bundle = self.bundle is not None or self.backend is not None
        subjects = {"--base": self.base, "--run": self.run is not None, "--bundle or --backend": asks_bundle}
        if len(named := [name for name, given in subjects.items() if given]) > 1:
            raise BadInputError(f"{' and '.join(named)} name different models: give one of them")
        if self.worst_cases is not None and self.worst_cases.suffix.lower() != ".png":
            raise BadInputError(f"--worst-cases draws a PNG, '{self.worst_cases}' names none: end it with .png")


def run_evaluation(request: EvaluationRequest) -> EvaluationReport:
    """Ask a model for every sample of a split and score its answers.

    Places to write are looked at before the model is opened, and what is written appears whole at the end.

    Raises:
        BadInputError: the data set, split, run, bundle or a place to write cannot be used as given.
        MissingPartError: the backend cannot run here, or the package has no shipped base.
        BundleError: the bundle is not whole.
        RSRefSegError: the disk is full.
    """
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.verify import verify_samples

    dataset = open_dataset(request.data, request.images)
    (samples,) = verify_samples(dataset, [request.split], request.resize_masks)
    with contextlib.ExitStack() as stack:
        worst, predictions, sheet = WorstCases(), None, None
        if request.save_predictions is not None:
            predictions = stack.enter_context(PredictionFolder(request.save_predictions, samples))
        if request.worst_cases is not None:
            sheet = stack.enter_context(sheet_file(request.worst_cases))

        def observe(answer: "Answer", overlap: "Overlap") -> None:
            if predictions is not None:
                predictions.add(answer, overlap)
            if sheet is not None:
                worst.add(answer, overlap)

        with open_subject(request.run, request.base, request.bundle, request.backend) as subject:
            metrics, resized = _measure(request, subject, samples, observe)
        report = _report(request, dataset, subject, metrics, resized, worst)
        if predictions is not None:
            predictions.finish(report.record())
        if sheet is not None:
            worst.draw(sheet, report.title)
    return report


def _measure(
    request: EvaluationRequest,
    subject: Subject,
    samples: "tuple[Sample, ...]",
    observe: "Callable[[Answer, Overlap], None]",
) -> "tuple[MetricsResult, int]":
    """The scores, and how many truths were resized. One image's answers are held at a time."""
    from rsrefseg.evaluation.answers import answer_samples, score
    from rsrefseg.evaluation.metrics import Protocol

    resized = 0

    def counted(answers: "Iterator[Answer]") -> "Iterator[Answer]":
        nonlocal resized
        for answer in answers:
            resized += answer.resized
            yield answer

    with ProgressLine(f"evaluating {subject.name}") as progress:
        answers = answer_samples(
            subject.ask,
            samples,
            shuffle_phrases=request.shuffle_phrases,
            on_size_mismatch="resize" if request.resize_masks else "refuse",
            progress=progress.update,
        )
        metrics = score(counted(answers), Protocol(request.protocol), observe)
    return metrics, resized


def _report(
    request: EvaluationRequest,
    dataset: "Dataset",
    subject: Subject,
    metrics: "MetricsResult",
    resized: int,
    worst: WorstCases,
) -> EvaluationReport:
    return EvaluationReport(
        subject=subject.name,
        runtime=subject.runtime,
        model_sha256=subject.model_sha256,
        bundle_sha256=subject.bundle_sha256,
        data=str(request.data),
        data_format=dataset.name,
        split=request.split,
        shuffled=request.shuffle_phrases,
        resized_masks=resized,
        metrics=metrics,
        published=published_context(
            dataset.name, request.split, metrics.samples, request.protocol, request.shuffle_phrases
        ),
        predictions=request.save_predictions,
        worst_cases_file=request.worst_cases,
        worst_cases=worst.cases if request.worst_cases is not None else (),
    )
