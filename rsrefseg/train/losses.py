"""What training minimises."""

from torch import Tensor
from torch.nn import functional as F

from ..model.model import Prediction
from .config import LossWeights


def segmentation_loss(prediction: Prediction, truth: Tensor, weights: LossWeights) -> Tensor:
    """Binary cross-entropy of the mask logits at the network's image size, plus the optional terms.

    Args:
        prediction: mask_logits and mask_prompt, (P, 1, h, w).
        truth: (P, 1, S, S) float32 in {0, 1}.
        weights: of the terms; a term of weight 0 is not computed.

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
    """One minus the soft Dice coefficient, mean over phrases (V-Net, eq. 3, with squares left out)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
