"""Predictions of the PyTorch model, for validation, evaluation and parity checks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rsrefseg.engines.segmentation import MaskRule, Segmentation
from rsrefseg.engines.text import Tokenizer

from ..model.model import RSRefSeg
from .predictions import Predict


def predict_with(model: RSRefSeg, tokenizer: Tokenizer, rule: MaskRule = MaskRule()) -> Predict:  # noqa: B008 (frozen)
    """Return a function that runs ``model``, in eval mode; each call encodes its image once for all phrases."""
    device = model.sam_decoder.position_encoding.device
    config = model.config
    keep_aspect = config.preprocessing.keep_aspect

    @torch.inference_mode()
    def predict(image: npt.NDArray[np.uint8], phrases: Sequence[str]) -> list[Segmentation]:
        tokens = tokenizer.encode(phrases)
        prediction = model(
            torch.from_numpy(config.stretch(image)).unsqueeze(0).to(device),
            torch.from_numpy(tokens.input_ids).to(device),
            torch.from_numpy(tokens.token_mask).to(device),
        )
        size = (image.shape[0], image.shape[1])
        logits = prediction.mask_logits.float().cpu().numpy()[:, 0]
        judged = [rule.judge(grid, size, keep_aspect) for grid in logits]
        return [
            Segmentation(phrase, grid, size, config.image_size, (), None, *presence_and_cut, keep_aspect)
            for phrase, grid, presence_and_cut in zip(phrases, logits, judged, strict=True)
        ]

    return predict
