"""``rsrefseg infer``: segment an image by phrases; write masks, an overlay and a JSON file."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadInputError
from .images.contrast import Stretch
from .images.images import DEFAULT_MAX_PIXELS, open_scene
from .images.names import is_remote, shown_name
from .images.photos import check_size
from .images.scene import Scene
from .images.tiles import Tiling
from .records import Record
from .results.map_options import MapOptions
from .results.overlay import LONGEST_LONG_SIDE
from .results.provenance import Provenance
from .results.results import source_key, write_results
from .segmentation import Segmentation
from .segmenter import Segmenter
from .system.progress import ProgressLine
from .tile_store import open_store
from .tiling import segment_tiles


class InferReport(Record, frozen=True):
    """The result of ``rsrefseg infer``.

    Attributes:
        image: the image's path, as given.
        backend: the backend that ran, and why it was selected.
        results: the figures of each phrase; see ``describe``.
        provenance: what the results were made from.
        files: paths of all files that were written; see ``write_results``.
        notes: notes on the bundle, and on bands and stretch of a raster, one line each.
    """

    image: str
    backend: str
    results: tuple[dict[str, Any], ...]
    provenance: Provenance
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the report as text: a line per phrase, the files, notes and warnings."""
        lines = [_line(figures) for figures in self.results]
        lines += [f"  {file}" for file in self.files]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"note: {warning}" for figures in self.results for warning in figures["warnings"]]
        return "\n".join([*lines, f"ran on {self.backend}"])


class InferOptions(Record, frozen=True):
    """What results depend on besides the image, the phrases and the bundle; see ``infer_image``."""

    backend: str = "auto"
    max_pixels: int = DEFAULT_MAX_PIXELS
    bands: str | None = None
    stretch: str = "auto"
    tile: str = "auto"
    overlap: int | None = None
    threshold: float = 0.5
    absent_below: float = 0.0
    rle: bool = False
    probability: str | None = None
    vector: str | None = None
    simplify: float = 0.0
    min_area: str | None = None

    def check(self) -> None:
        """Refuse values that no image can be segmented with.

        Raises:
            BadInputError: see ``MapOptions``, ``Stretch.parse`` and ``Tiling.choose``.
        """
        _ = self.maps
        Stretch.parse(self.stretch)
        Tiling.choose(self.tile, self.overlap, (1, 1), 1)

    @property
    def maps(self) -> MapOptions:
        """The options of the files of a raster."""
        vector = Path(self.vector) if self.vector is not None else None
        return MapOptions(self.probability, vector, self.simplify, self.min_area)


class Tiles(NamedTuple):
    """A folder of finished tiles, whether those of an interrupted run are used, and what removes it at the end."""

    folder: Path
    resume: bool
    kept: ExitStack


class Found(NamedTuple):
    """The segmentations of one image, and what they were made from."""

    scene: Scene
    segmentations: Sequence[Segmentation]
    provenance: Provenance
    notes: tuple[str, ...]


def infer_image(
    image: str,
    phrases: Sequence[str],
    bundle: Path | None,
    backend: str,
    out: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    bands: str | None = None,
    stretch: str = "auto",
    tile: str = "auto",
    overlap: int | None = None,
    threshold: float = 0.5,
    absent_below: float = 0.0,
    rle: bool = False,
    probability: str | None = None,
    vector: Path | None = None,
    simplify: float = 0.0,
    min_area: str | None = None,
    resume: bool = False,
) -> InferReport:
    """Segment the region of each phrase and write the results to the folder ``out``.

    Args:
        image: a photo or raster; see ``read_scene``, also for ``max_pixels``, ``bands`` and ``stretch``.
        phrases: one or more phrases.
        bundle: the bundle's folder; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        backend: a value of ``Backend``.
        out: folder of the results; see ``write_results``.
        tile: see ``Tiling.choose``; tiled rasters may have more than ``max_pixels`` pixels.
        overlap: pixels that neighbouring tiles share; a quarter of a tile by default.
        threshold: a pixel is in the mask if its probability is above this.
        absent_below: a mask is empty if the phrase's presence score is below this.
        rle: add the run lengths of the masks to the JSON file; not with tiles.
        probability, vector, simplify, min_area: options of the files of a raster; see ``MapOptions``.
        resume: use the finished tiles of an interrupted run with the same image, phrases and options.

    Raises:
        BadInputError: the image or a phrase cannot be used, or no backend has that name.
        BundleError: the bundle is missing, incomplete or changed.
        MissingPartError: the backend cannot run on this machine.
        RSRefSegError: the output cannot be written.
    """
    file = str(vector) if vector is not None else None
    options = InferOptions(
        backend, max_pixels, bands, stretch, tile, overlap, threshold, absent_below, rle, probability, file, simplify,
        min_area,
    )  # fmt: skip
    maps = options.maps
    key = source_key(image)[:16]
    with (
        Segmenter.open(
            bundle, backend, cached_phrases=len(phrases), threshold=threshold, absent_below=absent_below
        ) as segmenter,
        ExitStack() as kept,
    ):
        tiles = Tiles(out / f".tiles-{key}", resume, kept)
        found = segment_source(segmenter, image, phrases, options, tiles=tiles)
        files = write_results(out, result_stem(image), *found[:2], image, found.provenance, rle, maps)
        results = json.loads(files[-1].read_bytes())["results"]
        notes = segmenter.bundle.manifest.notes + found.notes
        return InferReport(
            shown_name(image), segmenter.backend_reason, tuple(results), found.provenance, tuple(files), notes
        )


def segment_source(
    segmenter: Segmenter,
    image: str,
    phrases: Sequence[str],
    options: InferOptions,
    turn: AbstractContextManager[object] | None = None,
    tiles: Tiles | None = None,
) -> Found:
    """Read an image and segment the region of each phrase, in tiles if the options say so.

    Args:
        segmenter: the bundle that runs; its backend was chosen already.
        image: a photo or raster.
        phrases: one or more phrases.
        options: how the image is read.
        turn: held while the segmenter runs, so that another thread reads meanwhile. The progress of tiles is only
            shown without it.
        tiles: where tiles are kept until the results are written; temporary files by default.

    Raises:
        BadInputError: the image or a phrase cannot be used.
        RSRefSegError: a stage cannot be loaded or run.
    """
    found: Sequence[Segmentation]
    by_windows = options.tile != "off"
    with open_scene(image, options.max_pixels, options.bands, options.stretch, by_windows=by_windows) as source:
        network_size = segmenter.bundle.manifest.geometry.image_size
        tiling, note = Tiling.choose(options.tile, options.overlap, source.size, network_size)
        if tiling is None:
            check_size(shown_name(image), source.size[1], source.size[0], options.max_pixels)
            scene = source.read_all()
            _check_scene(image, scene, source.size, options)
            with turn or nullcontext():
                found = segmenter.segment(scene, phrases)
        else:
            if options.rle:
                raise BadInputError("--rle is for images that are segmented at once: leave it out, or give --tile off")
            if min(tiling.tile_px, tiling.width) * min(tiling.tile_px, tiling.height) > options.max_pixels:
                limit = f"{options.max_pixels:,}"
                raise BadInputError(
                    f"a tile of {tiling.tile_px} px has more than {limit} pixels: give a smaller --tile"
                )
            scene = source.reduced(LONGEST_LONG_SIDE)
            _check_scene(image, scene, source.size, options)
        provenance = Provenance.of(image, scene, segmenter, tiling, options.to_dict())
        if tiling is not None:
            settings = {"source_key": source_key(image), "phrases": list(phrases), "provenance": provenance.to_dict()}
            store = None
            if tiles is not None:
                store = tiles.kept.enter_context(open_store(tiles.folder, settings, tiles.resume))
            with turn or ProgressLine("tiles") as progress:
                shown = progress.update if isinstance(progress, ProgressLine) else None
                found = segment_tiles(segmenter, source, phrases, tiling, shown, store)
    notes = scene.raster.notes if scene.raster is not None else ()
    return Found(scene, found, provenance, (*notes, note) if note else notes)


def result_stem(image: str) -> str:
    """Return the beginning of the result files' names: the file name without suffix, or a URL's without its query."""
    return Path(image.partition("?")[0] if is_remote(image) else image).stem


def _check_scene(image: str, scene: Scene, size: tuple[int, int], options: InferOptions) -> None:
    options.maps.check_image(scene.raster, size)
    if scene.valid is not None and not scene.valid.any():
        image = shown_name(image)
        raise BadInputError(f"the image '{image}' has no valid pixel: all are nodata, masked or transparent")


def _line(figures: dict[str, Any]) -> str:
    phrase = json.dumps(figures["phrase"], ensure_ascii=False)  # in quotes, control characters escaped
    presence = "" if figures["presence"] is None else f", presence {figures['presence']:.2f}"
    if figures["box"] is None:
        return f"{phrase}: nothing found{presence}"
    x1, y1, x2, y2 = figures["box"]
    return (
        f"{phrase}: box ({x1}, {y1}) to ({x2}, {y2}), {figures['area_px']:,} px "
        f"({figures['area_share']:.1%} of the image), mean probability {figures['mean_probability']:.2f}{presence}"
    )
