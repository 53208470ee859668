"""The segmentation of an image by one phrase."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .images.images import upsample_logits

_NO_DATA_LOGIT = -30.0


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The region of an image that one phrase refers to.

    ``mask`` and ``probability`` are computed on each access, so that results of many phrases on a large image use
    little memory. Keep an array that you need twice.

    Attributes:
        phrase: the phrase, as given.
        mask_logits: (h, w) float32, on the decoder's grid.
        size: (H, W) of the image, px.
        network_size: side of the network's square input, px.
        warnings: one line each, if the phrase was cut or contains unknown words.
        valid: (H, W) bool, False in pixels that hold no data and are never part of the mask; ``None`` if all do.
    """

    phrase: str
    mask_logits: npt.NDArray[np.float32]
    size: tuple[int, int]
    network_size: int
    warnings: tuple[str, ...] = ()
    valid: npt.NDArray[np.bool_] | None = None

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, True where the probability is above 0.5."""
        mask: npt.NDArray[np.bool_] = self.full_size_logits() > 0
        return mask

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in 0..1."""
        return sigmoid(self.full_size_logits())

    def full_size_logits(self) -> npt.NDArray[np.float32]:
        """Return the logits at the image's size, (H, W) float32; -30 in pixels that hold no data."""
        logits = upsample_logits(self.mask_logits, self.network_size, self.size)
        if self.valid is not None:
            logits[~self.valid] = _NO_DATA_LOGIT
        return logits


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the logistic function in place and return it."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore", under="ignore"):  # exp may overflow to infinity, whose inverse is 0
        np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)
