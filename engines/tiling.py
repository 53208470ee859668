"""Segments a scene tile by tile: each tile is encoded once for all phrases, and its logits are kept for blending."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .images.scene import Scene
from .images.tiles import Tiling
from .segmentation import NO_DATA_LOGIT, TiledSegmentation
from .segmenter import Segmenter
from .text import check_phrases
from .tile_store import TileStore

if TYPE_CHECKING:
    from .images.rasters import Raster


def segment_tiles(
    segmenter: Segmenter,
    source: "Raster | Scene",
    phrases: Sequence[str],
    tiling: Tiling,
    progress: Callable[[int, int], object] | None = None,
    store: TileStore | None = None,
) -> list[TiledSegmentation]:
    """Segment the regions that each phrase refers to in each tile of a scene.

    Memory grows little with the scene: tiles are read by window, and their logits and valid pixels lie in files.

    Args:
        segmenter: the bundle that runs.
        source: the scene.
        phrases: one or more phrases.
        tiling: the tiles.
        progress: called with the number of finished tiles and of all.
        store: files of the tiles, whose finished rows of tiles are not run again; temporary files by default.

    Raises:
        BadInputError: a phrase or a window of the scene cannot be used.
        RSRefSegError: a stage cannot be loaded or run, or the files cannot be written.
    """
    if store is None:
        with tempfile.TemporaryDirectory() as folder:  # the arrays outlive their names
            return segment_tiles(segmenter, source, phrases, tiling, progress, TileStore(Path(folder)))
    check_phrases(phrases)
    windows, size = list(tiling.windows()), (tiling.height, tiling.width)
    done = store.array("done", (len(windows),), np.bool_)
    logits, valid = store.stored("logits"), store.stored("valid")
    row = len(tiling.columns)
    for index, window in enumerate(windows):
        if done[index]:
            continue
        image, usable = source.read(window)
        if not usable.all():
            if valid is None:
                valid = store.array("valid", size, np.bool_, fill=True)
            valid[slice(*window[0]), slice(*window[1])] = usable
        if index == 0 or usable.any():
            found = segmenter.segment(image, phrases)
            if logits is None:
                shape = (len(phrases), len(windows), *found[0].mask_logits.shape)
                logits = store.array("logits", shape, np.float16)
            for place, one in enumerate(found):
                logits[place, index] = one.mask_logits
        if not usable.any():
            logits[:, index] = NO_DATA_LOGIT  # nothing is present there
        if (index + 1) % row == 0:
            for array in (logits, valid):
                if array is not None:
                    array.flush()  # before they count as done
            done[index + 1 - row : index + 1] = True
        if progress is not None:
            progress(index + 1, len(windows))
    notes = [segmenter.tokenizer.encode([phrase]).warnings for phrase in phrases]
    preprocessing = segmenter.bundle.manifest.preprocessing
    side, keep_aspect = preprocessing.image_size, preprocessing.keep_aspect
    tile = (tiling.rows[0][1], tiling.columns[0][1])  # all have one size
    judged = [segmenter.rule.judge(grids, tile, keep_aspect) for grids in logits]
    return [
        TiledSegmentation(phrase, grids, size, side, note, valid, *presence_and_cut, keep_aspect, tiling=tiling)
        for phrase, grids, note, presence_and_cut in zip(phrases, logits, notes, judged, strict=True)
    ]
