"""``rsrefseg eval``: the scores of a model on a data set, on any runtime, under a named protocol."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsrefseg.engines.backends import parse_backend
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.progress import ProgressLine

from .predictions import prediction_folder
from .predictors import open_predictor
from .published import published_context
from .report import EvaluationReport
from .worst_cases import WorstCases, sheet_file

if TYPE_CHECKING:
    from rsrefseg.evaluation.answers import Answer
    from rsrefseg.evaluation.metrics import Overlap


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What to evaluate, on what, and how.

    The model is the shipped base (``base``), a bundle on a runtime (``bundle`` or ``backend`` given), or else a run
    (``run``, the latest by default).

    Attributes:
        data: data set.
        split: its split.
        run: run folder, or the file of a merged model with its tokenizer beside it.
        base: the shipped base, before any training.
        bundle: bundle folder; with ``backend`` alone the default bundle.
        backend: runtime for the bundle; ``auto`` if only a bundle is given.
        protocol: one of ``Protocol``.
        shuffle_phrases: give each sample the phrase of another object in its image.
        resize_masks: resize masks of another size than their image instead of refusing them.
        images: folder of the data set's images, if it is not the format's own.
        save_predictions: folder to write every prediction into.
        worst_cases: PNG file to draw the samples of lowest IoU in.

    Raises:
        BadInputError: an unknown protocol or backend, more than one model, or a sheet that is not a PNG file.
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
        by_bundle = self.bundle is not None or self.backend is not None
        models = {"--base": self.base, "--run": self.run is not None, "--bundle or --backend": by_bundle}
        if len(named := [name for name, given in models.items() if given]) > 1:
            raise BadInputError(f"{' and '.join(named)} name different models: give one of them")
        if self.worst_cases is not None and self.worst_cases.suffix.lower() != ".png":
            raise BadInputError(f"--worst-cases draws a PNG, '{self.worst_cases}' is not one: end it with .png")


def run_evaluation(request: EvaluationRequest) -> EvaluationReport:
    """Score a model's predictions for every sample of a split. One image's predictions are in memory at a time.

    Places to write to are checked before the model is opened, and what is written appears whole at the end.

    Raises:
        BadInputError: the data set, split, run, bundle or a place to write cannot be used as given.
        MissingPartError: the backend cannot run here, or the package has no shipped base.
        BundleError: the bundle is not whole.
        RSRefSegError: the disk is full.
    """
    from rsrefseg.data.loading import verify_images, verify_phrases
    from rsrefseg.data.samples import open_dataset
    from rsrefseg.evaluation.answers import answer_samples, score
    from rsrefseg.evaluation.metrics import Protocol

    dataset = open_dataset(request.data, request.images)
    samples = dataset.split(request.split)
    verify_images(dataset, [request.split])
    verify_phrases(samples)
    with contextlib.ExitStack() as stack:
        worst, predictions, sheet, resized = WorstCases(), None, None, 0
        if request.save_predictions is not None:
            predictions = stack.enter_context(prediction_folder(request.save_predictions, samples))
        if request.worst_cases is not None:
            sheet = stack.enter_context(sheet_file(request.worst_cases))

        def observe(answer: "Answer", overlap: "Overlap") -> None:
            nonlocal resized
            resized += answer.resized
            if predictions is not None:
                predictions.add(answer, overlap)
            if sheet is not None:
                worst.add(answer, overlap)

        with (
            open_predictor(request.run, request.base, request.bundle, request.backend) as predictor,
            ProgressLine(f"evaluating {predictor.name}") as progress,
        ):
            answers = answer_samples(
                predictor.predict,
                samples,
                shuffle_phrases=request.shuffle_phrases,
                on_size_mismatch="resize" if request.resize_masks else "refuse",
                progress=progress.update,
            )
            metrics = score(answers, Protocol(request.protocol), observe)
        report = EvaluationReport(
            subject=predictor.name,
            runtime=predictor.runtime,
            model_sha256=predictor.model_sha256,
            bundle_sha256=predictor.bundle_sha256,
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
        if predictions is not None:
            predictions.finish(report.record())
        if sheet is not None:
            worst.draw(sheet, report.title)
    return report
