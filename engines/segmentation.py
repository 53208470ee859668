"""What one phrase refers to in an image."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .images.images import upsample_logits


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """What one phrase refers to.

    ``mask`` and ``probability`` are computed at each access: results of many phrases on a large image take little
    memory. Keep an array that you need twice.

    Attributes:
        phrase: as given.
        mask_logits: (h, w) float32, the decoder's grid.
        size: (H, W) of the image, px.
        network_size: side of the square that the network saw, px.
        warnings: one line each, when the phrase was cut or holds unknown words.
    """

    phrase: str
    mask_logits: npt.NDArray[np.float32]
    size: tuple[int, int]
    network_size: int
    warnings: tuple[str, ...] = ()

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, where the probability is above 0.5."""
        mask: npt.NDArray[np.bool_] = self.full_size_logits() > 0
        return mask

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in 0..1."""
        return sigmoid(self.full_size_logits())

    def full_size_logits(self) -> npt.NDArray[np.float32]:
        """The logits at the image's size, (H, W) float32."""
        return upsample_logits(self.mask_logits, self.network_size, self.size)


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logistic function, computed in place."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore", under="ignore"):  # infinity's inverse is the right 0
        np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)
