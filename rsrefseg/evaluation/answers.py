"""Predictions for every sample of a data set, and their scores, for any model. This module needs no PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.segmentation import Segmentation

from ..data.masks import BoolMask
from ..data.samples import Sample, group_by_image
from .metrics import MetricsResult, Overlap, Protocol, ReferringMetrics

Progress = Callable[[int, int], None]


# From an image (H, W, 3) uint8 and P phrases to P segmentations; `Segmenter.segment` is one.
Ask = Callable[[npt.NDArray[np.uint8], Sequence[str]], Sequence[Segmentation]]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One sample, answered.

    Attributes:
        sample: which.
        asked: the phrase it was asked with: the sample's own, unless phrases were shuffled.
        mask_logits: (h, w) float32 as the network gives them.
        prediction: (H, W) bool at the image's size.
        truth: (H, W) bool.
        resized: whether the truth had another size than its image and was resized.
    """

    sample: Sample
    asked: str
    mask_logits: npt.NDArray[np.float32]
    prediction: BoolMask
    truth: BoolMask
    resized: bool


def answer_samples(
    ask: Ask,
    samples: Sequence[Sample],
    *,
    shuffle_phrases: bool = False,
    resize_masks: bool = False,
    progress: Progress | None = None,
) -> Iterator[Answer]:
    """Ask for every sample, once per image with all of its phrases, in order of images.

    With ``shuffle_phrases`` every sample is asked with the phrase of the next one of its own image that means another
    object. The score left over is what an answer earns without heeding the phrase; samples without such a neighbour are
    left out.

    Args:
        ask: who answers.
        samples: what to ask.
        shuffle_phrases: as above.
        resize_masks: resize truths of another size than their image instead of refusing them.
        progress: called with (images done, images in all).
    """
    groups = group_by_image(samples)
    for done, group in enumerate(groups, start=1):
        asked = _shuffled(group) if shuffle_phrases else [(sample, sample.phrase) for sample in group]
        if asked:
            image = read_image(group[0].image_path)
            replies = ask(image, [phrase for _, phrase in asked])
            for (sample, phrase), reply in zip(asked, replies, strict=True):
                truth, resized = sample.mask_at((image.shape[0], image.shape[1]), resize_masks)
                yield Answer(sample, phrase, reply.mask_logits, reply.mask, truth, resized)
        if progress is not None:
            progress(done, len(groups))


def score(
    answers: Iterable[Answer],
    protocol: Protocol = Protocol.RSREFSEG,
    observe: Callable[[Answer, Overlap], None] | None = None,
) -> MetricsResult:
    """Metrics over answers.

    Args:
        answers: taken one by one; none is kept.
        protocol: how they are compared.
        observe: called with each answer and how far it covers its truth, e.g. to write it down.

    Raises:
        BadInputError: there is not one answer.
    """
    metrics = ReferringMetrics(protocol)
    answered = False
    for answer in answers:
        overlap = protocol.overlap(answer.prediction, answer.truth)
        metrics.add(overlap, answer.sample.category)
        if observe is not None:
            observe(answer, overlap)
        answered = True
    if not answered:
        raise BadInputError("nothing to score: no sample shares its image with another object to take a phrase from")
    return metrics.result()


def _shuffled(group: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Each sample with the phrase of the next one, in turn, that has another mask."""
    asked = []
    for index, sample in enumerate(group):
        others = [other for other in (*group[index + 1 :], *group[:index]) if other.mask_source != sample.mask_source]
        if others:
            asked.append((sample, others[0].phrase))
    return asked
