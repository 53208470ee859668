"""Segments a scene tile by tile: each tile is encoded once for all phrases, and its logits are kept for blending."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .images.scene import Scene
from .images.tiles import Tiling
from .segmentation import TiledSegmentation
from .segmenter import Segmenter

if TYPE_CHECKING:
    from .images.rasters import Raster


def segment_tiles(
    segmenter: Segmenter,
    source: "Raster | Scene",
    phrases: Sequence[str],
    tiling: Tiling,
    progress: Callable[[int, int], object] | None = None,
) -> list[TiledSegmentation]:
    """Segment the regions that each phrase refers to in each tile of a scene.

    Memory grows little with the scene: tiles are read by window, and their logits and valid pixels lie in temporary
    files. ``progress`` is called with the number of finished tiles and of all.

    Raises:
        BadInputError: a phrase or a window of the scene cannot be used.
        RSRefSegError: a stage cannot be loaded or run.
    """
    windows = list(tiling.windows())
    logits: npt.NDArray[np.float16] | None = None
    valid: npt.NDArray[np.bool_] | None = None
    warnings: list[tuple[str, ...]] = [()] * len(phrases)
    network_size = segmenter.bundle.manifest.geometry.image_size
    for index, window in enumerate(windows):
        image, usable = source.read(window)
        if not usable.all():
            if valid is None:
                valid = _file((tiling.height, tiling.width), np.bool_)
                for row in valid:
                    row[:] = True
            valid[slice(*window[0]), slice(*window[1])] = usable
        if index == 0 or usable.any():
            found = segmenter.segment(image, phrases)
            if logits is None:
                shape = (len(phrases), len(windows), *found[0].mask_logits.shape)
                logits = _file(shape, np.float16)
                warnings = [one.warnings for one in found]
            for place, one in enumerate(found):
                logits[place, index] = one.mask_logits
        if progress is not None:
            progress(index + 1, len(windows))
    assert logits is not None
    size = (tiling.height, tiling.width)
    return [
        TiledSegmentation(phrase, grids, size, network_size, notes, valid, *segmenter.rule.judge(grids), tiling=tiling)
        for phrase, grids, notes in zip(phrases, logits, warnings, strict=True)
    ]


def _file(shape: tuple[int, ...], dtype: type) -> Any:
    """Return an array of zeros in a temporary file that disappears with it.

    Raises:
        OSError: the disk of ``$TMPDIR`` is full; a write to the array would kill the process then.
    """
    with tempfile.TemporaryFile() as stream:
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(stream, dtype, "w+", shape=shape)
