"""Metrics of a model on samples, in PyTorch: validation, the demo's figures and the reference of parity checks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engines.images import read_image, stretch, upsample_logits
from engines.text import Tokenizer
from rsrefseg.data.loading import SizeMismatch, fit_mask
from rsrefseg.data.samples import Sample, group_by_image
from rsrefseg.metrics import MetricsResult, Protocol, ReferringMetrics
from rsrefseg.model import RSRefSeg

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample, answered: mask_logits (h, w) float32 as the network gives them; prediction and truth (H, W) bool."""

    sample: Sample
    mask_logits: npt.NDArray[np.float32]
    prediction: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.bool_]


def evaluate(
    model: RSRefSeg,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    *,
    protocol: Protocol = Protocol.RSREFSEG,
    shuffle_phrases: bool = False,
    on_size_mismatch: SizeMismatch = "refuse",
    progress: Progress | None = None,
) -> MetricsResult:
    """Metrics over ``samples``.

    With ``shuffle_phrases`` every sample is asked with the phrase of the next one of its own image that means another
    object. The score left over is what an answer earns without heeding the phrase; samples without such a neighbour are
    left out.
    """
    metrics = ReferringMetrics(protocol)
    for answer in answers(
        model,
        tokenizer,
        samples,
        shuffle_phrases=shuffle_phrases,
        on_size_mismatch=on_size_mismatch,
        progress=progress,
    ):
        metrics.update(answer.prediction, answer.truth, answer.sample.category)
    return metrics.result()


@torch.inference_mode()
def answers(
    model: RSRefSeg,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    *,
    shuffle_phrases: bool = False,
    on_size_mismatch: SizeMismatch = "refuse",
    progress: Progress | None = None,
) -> Iterator[Answer]:
    """Ask the model for every sample; an image is encoded once for all of its phrases."""
    device = model.attn_prompter.grid_encoding.device
    image_size = model.config.sam.image_size
    groups = group_by_image(samples)
    was_training = model.training
    model.eval()
    try:
        for done, group in enumerate(groups, start=1):
            asked = _shuffled(group) if shuffle_phrases else [(sample, sample.phrase) for sample in group]
            if not asked:
                continue
            image = read_image(group[0].image_path)
            tokens = tokenizer.encode([phrase for _, phrase in asked])
            prediction = model(
                torch.from_numpy(stretch(image, image_size)).unsqueeze(0).to(device),
                torch.from_numpy(tokens.input_ids).to(device),
                torch.from_numpy(tokens.token_mask).to(device),
            )
            mask_logits = prediction.mask_logits.float().cpu().numpy()[:, 0]
            size = (image.shape[0], image.shape[1])
            for (sample, _), logits in zip(asked, mask_logits, strict=True):
                truth, _ = fit_mask(sample, size, on_size_mismatch)
                yield Answer(sample, logits, upsample_logits(logits, image_size, size) > 0, truth)
            if progress is not None:
                progress(done, len(groups))
    finally:
        model.train(was_training)


def _shuffled(group: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Each sample with the phrase of the next one, in turn, that has another mask."""
    asked = []
    for index, sample in enumerate(group):
        others = [other for other in (*group[index + 1 :], *group[:index]) if other.rle != sample.rle]
        if others:
            asked.append((sample, others[0].phrase))
    return asked
