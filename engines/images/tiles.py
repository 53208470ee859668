"""Overlapping tiles of a scene, and the weights that blend their values."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import BadInputError

_MOST_IMAGE_PX = 3  # that one network pixel covers without tiles
_OVERLAP_SHARE = 4  # by default a quarter of a tile

Window = tuple[tuple[int, int], tuple[int, int]]  # rows and columns, half-open


@dataclass(frozen=True)
class Tiling:
    """Square tiles on a scene; the last of a row or column is shifted back to end with the scene.

    Attributes:
        height, width: size of the scene, px.
        tile_px: side of a tile; a scene that is narrower has tiles of its own width.
        overlap_px: pixels that neighbours share.
    """

    height: int
    width: int
    tile_px: int
    overlap_px: int

    def __post_init__(self) -> None:
        if self.tile_px < 1 or not 0 <= self.overlap_px <= self.tile_px // 2:
            raise BadInputError(f"tiles of {self.tile_px} px overlap by 0 to {self.tile_px // 2} px")

    @classmethod
    def choose(
        cls, tile: str, overlap_px: int | None, size: tuple[int, int], network_size: int
    ) -> "tuple[Tiling | None, str]":
        """Return the tiling that ``--tile`` asks for, or ``None`` for the whole scene at once, and a note.

        Args:
            tile: ``off``; a side in px; or ``auto``: tiles of the network's side if the longer side of the scene
                exceeds 3 times that.
            overlap_px: pixels that neighbours share; a quarter of a tile by default.
            size: (H, W) of the scene, px.
            network_size: side of the network's square input, px.

        Raises:
            BadInputError: ``tile`` is none of these, or the overlap is more than half a tile.
        """
        if tile not in ("auto", "off") and not (tile.isdecimal() and int(tile) > 0):
            raise BadInputError(f"'{tile}' is not a tile size: use auto, off or a side in pixels")
        scale = max(size) / network_size
        too_large = scale > _MOST_IMAGE_PX
        scene = f"the scene of {size[1]} x {size[0]} px"
        if tile == "off" or (tile == "auto" and not too_large):
            note = f"{scene} is shrunk {scale:.1f} times to the network's input, small objects vanish: --tile auto"
            return None, note if too_large else ""
        side = network_size if tile == "auto" else int(tile)
        tiling = cls(*size, side, side // _OVERLAP_SHARE if overlap_px is None else overlap_px)
        return tiling, (
            f"{scene} is read in {len(tiling.rows) * len(tiling.columns)} tiles of {side} px that overlap by"
            f" {tiling.overlap_px} px: positions and superlatives ('on the left', 'the largest') refer to a tile"
        )

    @functools.cached_property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """Row ranges of the tiles."""
        return self._spans(self.height)

    @functools.cached_property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """Column ranges of the tiles."""
        return self._spans(self.width)

    def windows(self) -> Iterator[Window]:
        """Yield the tiles row by row."""
        for rows in self.rows:
            for columns in self.columns:
                yield rows, columns

    def _spans(self, length: int) -> tuple[tuple[int, int], ...]:
        side = min(self.tile_px, length)
        count = 1 + math.ceil((length - side) / (self.tile_px - self.overlap_px))
        starts = (min(index * (self.tile_px - self.overlap_px), length - side) for index in range(count))
        return tuple((start, start + side) for start in starts)

    def weights(self, spans: tuple[tuple[int, int], ...]) -> npt.NDArray[np.float32]:
        """Return the weight of each pixel of each tile along one axis, (tiles, side) float32.

        The weights of a pixel sum up to 1 over the tiles. They rise as a raised cosine over the overlap.
        """
        length = spans[-1][1]
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(self.overlap_px) + 0.5) / max(1, self.overlap_px))
        raised = np.ones((len(spans), spans[0][1]))
        total = np.zeros(length)
        for index, (start, end) in enumerate(spans):
            if start > 0:
                raised[index, : self.overlap_px] *= ramp
            if end < length:
                raised[index, raised.shape[1] - self.overlap_px :] *= ramp[::-1]
            total[start:end] += raised[index]
        for index, (start, end) in enumerate(spans):
            raised[index] /= total[start:end]
        return raised.astype(np.float32)
