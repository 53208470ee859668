"""Loss of the training."""

from torch import Tensor
from torch.nn import functional as F

from ..model.model import Prediction
from .config import LossWeights


def segmentation_loss(prediction: Prediction, truth: Tensor, weights: LossWeights) -> Tensor:
    """Compute binary cross-entropy of the mask logits at the network's image size, plus the optional terms.

    Args:
        prediction: mask_logits and mask_prompt, (P, 1, h, w) float32.
        truth: (P, 1, S, S) float32 in {0, 1}.
        weights: weights of the terms; a term with weight 0 is skipped.

    Returns:
        Scalar float32, mean over phrases and pixels.
    """
    logits = F.interpolate(prediction.mask_logits, size=truth.shape[-2:], mode="bilinear", align_corners=False)
    loss = weights.bce * F.binary_cross_entropy_with_logits(logits, truth)
    if weights.dice:
        loss = loss + weights.dice * dice_loss(logits, truth)
    if weights.coarse:
        small = F.interpolate(truth, size=prediction.mask_prompt.shape[-2:], mode="area")
        loss = loss + weights.coarse * F.binary_cross_entropy_with_logits(prediction.mask_prompt, small)
    return loss


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute one minus the soft Dice coefficient, averaged over phrases (V-Net, eq. 3, without the squares)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
