"""The presence score of a phrase: how likely it is that the image shows what the phrase refers to."""

import numpy as np
import numpy.typing as npt

from .images.images import network_size
from .records import Record


class Presence(Record, frozen=True):
    """A calibration: the presence score is ``sigmoid(scale * strength + bias)``, see ``strength``.

    Attributes:
        scale, bias: of the logistic regression on a validation split.
        auc: area under the ROC curve there: the share of pairs of a phrase with and one without a target in which the
            first scores higher.
        with_target, without_target: number of phrases of each kind.
        checkpoint_sha256: digest of the merged model that was calibrated.
    """

    scale: float
    bias: float
    auc: float
    with_target: int
    without_target: int
    checkpoint_sha256: str

    def score(self, mask_logits: npt.NDArray[np.floating], size: tuple[int, int], keep_aspect: bool) -> float:
        """Return the presence score, 0..1, of mask logits (..., h, w); of tiles, the highest counts.

        See ``strength`` for ``size``, that of each tile, and ``keep_aspect``.
        """
        grids = mask_logits.reshape(-1, *mask_logits.shape[-2:])
        logit = self.scale * max(strength(grid, size, keep_aspect) for grid in grids) + self.bias
        return float(1 / (1 + np.exp(-logit)))


def strength(mask_logits: npt.NDArray[np.floating], size: tuple[int, int], keep_aspect: bool) -> float:
    """Return the mean of the highest hundredth of mask logits: how surely the model sees any object.

    Args:
        mask_logits: (h, h), on the decoder's grid.
        size: (H, W) of the image, px.
        keep_aspect: whether the image was padded to the network's square; logits of the padding do not count.
    """
    height, width = network_size(size, mask_logits.shape[0], keep_aspect)
    flat = mask_logits[:height, :width].astype(np.float32).ravel()
    count = max(1, flat.size // 100)
    return float(np.partition(flat, -count)[-count:].mean())
