"""Judges a quantised bundle by its masks: against those of the original bundle, on samples it was not calibrated on."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.samples import Sample, group_by_image
from rsrefseg.data.verify import verify_samples
from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import mask_iou
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import MaskJudgement
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_scene, stretch
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.evaluation.metrics import ReferringMetrics
from rsrefseg.evaluation.predictions import SamplePrediction, predict_samples

from .quantizer import Feeds
from .settings import QuantizationSettings

_CALIBRATION_IMAGES, _JUDGED_IMAGES = 16, 64
MAX_EVALUATIONS = 12


class Samples(NamedTuple):
    """Samples to calibrate with, and samples of other images to judge on."""

    calibration: tuple[Sample, ...]
    judged: tuple[Sample, ...]


def choose_samples(settings: QuantizationSettings) -> Samples:
    """Return samples for calibration and judgement, both spread over the split.

    Raises:
        BadInputError: the data set cannot be used or the split has only one image.
    """
    assert settings.data is not None
    (samples,) = verify_samples(open_dataset(settings.data, settings.images), [settings.split], resize_masks=True)
    groups = group_by_image(samples)
    if len(groups) < 2:
        raise BadInputError(f"the split '{settings.split}' has one image: calibration and judgement need two or more")
    others = [group for number, group in enumerate(groups) if number % 3]
    return Samples(_spread(groups[::3], _CALIBRATION_IMAGES), _spread(others, _JUDGED_IMAGES))


def _spread(groups: Sequence[tuple[Sample, ...]], most: int) -> tuple[Sample, ...]:
    places = np.linspace(0, len(groups) - 1, min(most, len(groups)))
    return tuple(sample for place in places for sample in groups[int(place)])


def stage_feeds(bundle: Bundle, samples: Sequence[Sample]) -> dict[Stage, list[Feeds]]:
    """Return the inputs of the encoders for some samples: one per image, and one per phrase for the text tower."""
    tokenizer, preprocessing = bundle.tokenizer(), bundle.manifest.preprocessing
    size, resize, keep_aspect = preprocessing.image_size, preprocessing.resize, preprocessing.keep_aspect
    images: list[Feeds] = [
        {"image": stretch(read_scene(group[0].image_path).image, size, resize, keep_aspect)[None]}
        for group in group_by_image(samples)
    ]
    batches = [tokenizer.encode([sample.phrase]) for sample in samples]
    phrases: list[Feeds] = [{"input_ids": batch.input_ids, "token_mask": batch.token_mask} for batch in batches]
    return {Stage.SIGLIP_VISION: images, Stage.SIGLIP_TEXT: phrases, Stage.SAM_ENCODER: images}


class Judge:
    """Compares bundles with the original one on fixed samples, with ONNX Runtime on the CPU.

    Args:
        original: the bundle before quantisation.
        samples: samples to judge on.
        settings: data set and limits.
    """

    def __init__(self, original: Bundle, samples: Sequence[Sample], settings: QuantizationSettings) -> None:
        self._samples, self._settings = samples, settings
        metrics = ReferringMetrics()
        self._masks: list[npt.NDArray[np.uint8]] = []
        for one in self._predictions(original):
            metrics.update(one.mask, one.truth)
            self._masks.append(np.packbits(one.mask))
        self._giou = metrics.result().gIoU
        self.evaluations = 0

    def judge(self, bundle: Bundle) -> MaskJudgement:
        """Return how the masks of a bundle compare with those of the original."""
        self.evaluations += 1
        metrics, ious = ReferringMetrics(), []
        for one, packed in zip(self._predictions(bundle), self._masks, strict=True):
            metrics.update(one.mask, one.truth)
            wanted = np.unpackbits(packed, count=one.mask.size).astype(np.bool_).reshape(one.mask.shape)
            ious.append(mask_iou(wanted, one.mask))
        settings = self._settings
        assert settings.data is not None
        return MaskJudgement(
            data=settings.data.resolve().name,
            split=settings.split,
            samples=len(ious),
            giou_before=self._giou,
            giou_after=metrics.result().gIoU,
            iou_mean=sum(ious) / len(ious),
            iou_worst=min(ious),
            max_giou_drop=settings.max_giou_drop,
            min_iou=settings.min_iou,
            min_iou_mean=settings.min_iou_mean,
            evaluations=self.evaluations,
        )

    def _predictions(self, bundle: Bundle) -> Iterator[SamplePrediction]:
        with Segmenter(bundle, select_backend(Backend.ONNXRUNTIME, bundle).engine) as segmenter:
            yield from predict_samples(segmenter.segment, self._samples, resize_masks=True)


def fewest(count: int, holds: Callable[[int], bool], budget: int = MAX_EVALUATIONS) -> int:
    """Return a small number for which ``holds`` is true, or ``count``, which is never tried.

    0 is tried first, then the geometric mean of the largest number that failed and the smallest that held: of many
    layers, a few are usually enough.

    Args:
        count: a number for which ``holds`` is known to be true.
        holds: a trial; assumed to be true for every number above one for which it is true.
        budget: the largest number of trials.
    """
    failed, held = -1, count
    for _ in range(budget):
        if held - failed == 1:
            break
        middle = max(failed + 1, math.isqrt(max(failed, 0) * held))
        failed, held = (failed, middle) if holds(middle) else (middle, held)
    return held
