"""``rsrefseg eval``: scores a model on a data set, on any runtime, under a named protocol."""

import contextlib
from typing import TYPE_CHECKING

from rsrefseg.engines.system.files import atomic_file
from rsrefseg.engines.system.progress import ProgressLine

from .predictions import prediction_folder
from .predictors import open_predictor
from .published import published_context
from .report import EvaluationReport, EvaluationRequest
from .worst_cases import WorstCases

if TYPE_CHECKING:
    from rsrefseg.evaluation.metrics import Overlap
    from rsrefseg.evaluation.predictions import SamplePrediction


def run_evaluation(request: EvaluationRequest) -> EvaluationReport:
    """Score a model's predictions for every sample of a split. The predictions of one image are in memory at a time.

    Output paths are checked before the model is opened, and outputs are written atomically at the end.

    Raises:
        BadInputError: the data set, split, run, bundle or an output path cannot be used.
        MissingPartError: the backend cannot run here, or the package has no shipped base.
        BundleError: the bundle is incomplete or damaged.
        RSRefSegError: the disk is full.
    """
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.verify import verify_samples
    from rsrefseg.evaluation.metrics import Protocol
    from rsrefseg.evaluation.predictions import predict_samples, score

    dataset = open_dataset(request.data, request.images)
    (samples,) = verify_samples(dataset, [request.split], request.resize_masks)
    with contextlib.ExitStack() as stack:
        worst, writer, sheet, resized = WorstCases(), None, None, 0
        if request.save_predictions is not None:
            writer = stack.enter_context(prediction_folder(request.save_predictions, samples))
        if request.worst_cases is not None:
            sheet = stack.enter_context(atomic_file(request.worst_cases))

        def observe(prediction: "SamplePrediction", overlap: "Overlap") -> None:
            nonlocal resized
            resized += prediction.resized
            if writer is not None:
                writer.add(prediction, overlap)
            if sheet is not None:
                worst.add(prediction, overlap)

        with (
            open_predictor(
                request.run, request.base, request.bundle, request.backend, request.absent_below
            ) as predictor,
            ProgressLine(f"evaluating {predictor.name}") as progress,
        ):
            predictions = predict_samples(
                predictor.predict,
                samples,
                shuffle_phrases=request.shuffle_phrases,
                resize_masks=request.resize_masks,
                progress=progress.update,
            )
            metrics = score(predictions, Protocol(request.protocol), observe)
        report = EvaluationReport(
            request=request,
            predictor=predictor,
            data_format=dataset.name,
            resized_masks=resized,
            metrics=metrics,
            published=published_context(
                dataset.name, request.split, metrics.samples, request.protocol, request.shuffle_phrases
            ),
            worst_cases=tuple(worst.cases),
        )
        if writer is not None:
            writer.finish(report.record())
        if sheet is not None:
            worst.draw(sheet, report.title)
    return report
