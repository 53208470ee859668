"""Validation, distributed over the processes of a training."""

from ..data.samples import group_by_image
from ..evaluation.evaluate import predict_with
from ..evaluation.metrics import MetricsResult, Overlap, ReferringMetrics
from ..evaluation.predictions import predict_samples
from ..model.model import RSRefSeg
from .data import TrainingData
from .processes import agreed, gathered, this_process


def validate(model: RSRefSeg, data: TrainingData) -> MetricsResult:
    """Compute metrics on the validation samples; each of n processes runs the model on every n-th image.

    Returns:
        The main process's result in all processes, so that all of them take the same decisions.

    Raises:
        BadInputError: an image or mask cannot be used.
    """
    metrics, process = ReferringMetrics(), this_process()
    groups = group_by_image(data.validation)
    overlaps: list[tuple[int, list[tuple[Overlap, str]]]] = []
    model.eval()
    for number in range(process.process_index, len(groups), process.num_processes):
        found = predict_samples(predict_with(model, data.tokenizer), groups[number], resize_masks=data.resize_masks)
        overlaps.append(
            (number, [(metrics.protocol.overlap(one.mask, one.truth), one.sample.category) for one in found])
        )
    model.train()
    # In the order of a single process: a sum in another order may round differently.
    for _, of_image in sorted(gathered(overlaps)):
        for overlap, category in of_image:
            metrics.add(overlap, category)
    return agreed(metrics.result())
