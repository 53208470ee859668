"""The segmentation of an image by one phrase."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import BadInputError
from .images.images import upsample_logits
from .images.tiles import Tiling
from .presence import Presence

NO_DATA_LOGIT = -30.0
_STRIP_PIXELS = 1 << 22


@dataclass(frozen=True, slots=True)
class MaskRule:
    """What becomes part of a mask.

    Attributes:
        threshold: a pixel is in the mask if its probability is above this.
        absent_below: the mask is empty if the phrase's presence score is below this.
        presence: calibration of presence scores; ``None`` if the model has none.

    Raises:
        BadInputError: a value is out of range, or ``absent_below`` needs a calibration.
    """

    threshold: float = 0.5
    absent_below: float = 0.0
    presence: Presence | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise BadInputError(f"the threshold {self.threshold:g} is not a probability between 0 and 1")
        if not 0 <= self.absent_below <= 1:
            raise BadInputError(f"--absent-below {self.absent_below:g} is not a presence score from 0 to 1")
        if self.absent_below > 0 and self.presence is None:
            raise BadInputError(
                "the model has no presence scores for --absent-below: fit them with `rsrefseg calibrate`, then export"
            )

    def judge(
        self, mask_logits: npt.NDArray[np.floating], size: tuple[int, int], keep_aspect: bool
    ) -> tuple[float | None, float]:
        """Return the presence score of mask logits, and the logit above which a pixel is in the mask.

        Args:
            mask_logits: (..., h, w), on the decoder's grid.
            size: (H, W) of the image, or of each tile, px.
            keep_aspect: whether it was padded to the network's square instead of stretched.
        """
        score = None if self.presence is None else self.presence.score(mask_logits, size, keep_aspect)
        if score is not None and score < self.absent_below:
            return score, math.inf
        return score, math.log(self.threshold / (1 - self.threshold))


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
        presence: presence score, 0..1; ``None`` if the model has none.
        cut_logit: pixels with a logit above it are in the mask; infinite if the phrase counts as absent.
        keep_aspect: whether the image was padded to the network's square instead of stretched.
    """

    phrase: str
    mask_logits: npt.NDArray[np.float32]
    size: tuple[int, int]
    network_size: int
    warnings: tuple[str, ...] = ()
    valid: npt.NDArray[np.bool_] | None = None
    presence: float | None = None
    cut_logit: float = 0.0
    keep_aspect: bool = False

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, True where the probability is above the threshold."""
        mask: npt.NDArray[np.bool_] = self.full_size_logits() > self.cut_logit
        return mask

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in 0..1."""
        return sigmoid(self.full_size_logits())

    def full_size_logits(self) -> npt.NDArray[np.float32]:
        """Return the logits at the image's size, (H, W) float32; -30 in pixels that hold no data."""
        logits = upsample_logits(self.mask_logits, self.network_size, self.size, keep_aspect=self.keep_aspect)
        if self.valid is not None:
            logits[~self.valid] = NO_DATA_LOGIT
        return logits

    def strips(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield ``full_size_logits`` from top to bottom: the first row, and logits (h, W) float32."""
        yield 0, self.full_size_logits()


@dataclass(frozen=True, slots=True, eq=False)
class TiledSegmentation(Segmentation):
    """The regions of a scene that one phrase refers to, from overlapping tiles.

    Attributes:
        mask_logits: (tiles, h, w) float16, on the decoder's grid.
        tiling: the tiles.
    """

    tiling: Tiling = field(kw_only=True)

    def full_size_logits(self) -> npt.NDArray[np.float32]:
        """Return the blended logits at the scene's size, (H, W) float32; -30 in pixels that hold no data."""
        logits = np.empty(self.size, np.float32)
        for top, strip in self.strips():
            logits[top : top + len(strip)] = strip
        return logits

    def strips(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield ``full_size_logits`` from top to bottom, at most 4 million pixels at a time."""
        height, width = self.size
        down, across = self.tiling.weights(self.tiling.rows), self.tiling.weights(self.tiling.columns)
        step = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            strip = np.zeros((bottom - top, width), np.float32)
            for row, (start, end) in enumerate(self.tiling.rows):
                if start < bottom and end > top:
                    rows = range(max(start, top), min(end, bottom))
                    inside = range(rows.start - start, rows.stop - start)
                    weights = down[row, inside.start : inside.stop]
                    self._add_row(strip[rows.start - top : rows.stop - top], row, inside, weights, across)
            if self.valid is not None:
                strip[~self.valid[top:bottom]] = NO_DATA_LOGIT
            yield top, strip

    def _add_row(
        self,
        strip: npt.NDArray[np.float32],
        row: int,
        inside: range,
        down: npt.NDArray[np.float32],
        across: npt.NDArray[np.float32],
    ) -> None:
        """Add some rows of a row of tiles to a strip, weighted."""
        columns = self.tiling.columns
        for column, (left, right) in enumerate(columns):
            grid = self.mask_logits[row * len(columns) + column].astype(np.float32)
            size = (self.tiling.rows[row][1] - self.tiling.rows[row][0], right - left)
            logits = upsample_logits(grid, self.network_size, size, inside, self.keep_aspect)
            strip[:, left:right] += logits * down[:, None] * across[column]


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the logistic function in place and return it."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore", under="ignore"):  # exp may overflow to infinity, whose inverse is 0
        np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)
