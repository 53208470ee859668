"""Predictions of any model for the samples of a data set, and their scores. This module needs no PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_scene
from rsrefseg.engines.segmentation import Segmentation

from ..data.masks import BoolMask
from ..data.samples import Sample, group_by_image
from .metrics import MetricsResult, Overlap, Protocol, ReferringMetrics

Progress = Callable[[int, int], None]


# Maps an image (H, W, 3) uint8 and P phrases to P segmentations, as `Segmenter.segment` does.
Predict = Callable[[npt.NDArray[np.uint8], Sequence[str]], Sequence[Segmentation]]


@dataclass(frozen=True, slots=True, eq=False)
class SamplePrediction:
    """The predicted mask of one sample.

    Attributes:
        sample: the sample.
        phrase: the phrase given to the model: the sample's, or another one if phrases were shuffled.
        mask_logits: (h, w) float32, output of the network.
        mask: (H, W) bool, predicted mask at the image's size.
        truth: (H, W) bool, annotated mask.
        resized: whether the annotated mask was resized to the image's size.
    """

    sample: Sample
    phrase: str
    mask_logits: npt.NDArray[np.float32]
    mask: BoolMask
    truth: BoolMask
    resized: bool


def predict_samples(
    predict: Predict,
    samples: Sequence[Sample],
    *,
    shuffle_phrases: bool = False,
    resize_masks: bool = False,
    progress: Progress | None = None,
) -> Iterator[SamplePrediction]:
    """Predict the mask of every sample, with one call for each image and all of its phrases, in order of images.

    Args:
        predict: function that runs the model.
        samples: samples to predict.
        shuffle_phrases: give each sample the phrase of the next sample of its image with another mask, which shows the
            score of a model that ignores phrases. Samples without such a neighbour are skipped.
        resize_masks: resize annotated masks of another size than their image instead of raising an error.
        progress: called with the number of finished images and of all images.

    Raises:
        BadInputError: an image or mask cannot be used.
    """
    groups = group_by_image(samples)
    for done, group in enumerate(groups, start=1):
        pairs = _shuffled(group) if shuffle_phrases else [(sample, sample.phrase) for sample in group]
        if pairs:
            scene = read_scene(group[0].image_path)
            found = predict(scene.image, [phrase for _, phrase in pairs])
            for (sample, phrase), one in zip(pairs, found, strict=True):
                truth, resized = sample.mask_at(scene.size, resize_masks)
                mask = one.mask if scene.valid is None else one.mask & scene.valid  # as ``infer`` writes it
                yield SamplePrediction(sample, phrase, one.mask_logits, mask, truth, resized)
        if progress is not None:
            progress(done, len(groups))


def score(
    predictions: Iterable[SamplePrediction],
    protocol: Protocol = Protocol.RSREFSEG,
    observe: Callable[[SamplePrediction, Overlap], None] | None = None,
) -> MetricsResult:
    """Compute the metrics of predictions.

    Args:
        predictions: predictions, read one by one and not kept.
        protocol: evaluation protocol.
        observe: called with each prediction and its overlap with the annotated mask.

    Raises:
        BadInputError: there are no predictions.
    """
    metrics = ReferringMetrics(protocol)
    empty = True
    for prediction in predictions:
        overlap = protocol.overlap(prediction.mask, prediction.truth)
        metrics.add(overlap, prediction.sample.category)
        if observe is not None:
            observe(prediction, overlap)
        empty = False
    if empty:
        raise BadInputError("nothing to score: no sample shares its image with another object to take a phrase from")
    return metrics.result()


def _shuffled(group: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Pair each sample with the phrase of the next sample, cyclically, that has another mask."""
    pairs = []
    for index, sample in enumerate(group):
        others = [other for other in (*group[index + 1 :], *group[:index]) if other.mask_source != sample.mask_source]
        if others:
            pairs.append((sample, others[0].phrase))
    return pairs
