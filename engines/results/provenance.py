"""What a result was made from."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.names import is_remote, without_secrets
from ..images.scene import RasterInfo, Scene
from ..images.tiles import Tiling
from ..records import Record
from ..system.files import sha256_file
from ..system.packages import installed_version

if TYPE_CHECKING:
    from ..segmenter import Segmenter

_PACKAGES = (
    "rsrefseg", "numpy", "pillow", "rasterio", "opencv-python-headless",
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
)  # fmt: skip


class Provenance(Record, frozen=True):
    """What a result was made from.

    Attributes:
        source: the image's absolute path, or its URL or other GDAL name.
        source_sha256: SHA-256 of the file; ``None`` for sources that are not local files.
        bundle_sha256: SHA-256 of the bundle's ``bundle.json``, which lists the digests of all its files.
        backend: the backend that ran.
        versions: installed versions of this package and of those that may have computed the result.
        raster: place, bands and stretch; ``None`` for photos.
        threshold, absent_below: see ``MaskRule``.
        options: the options of ``infer`` that the result depends on, as given; ``None`` from Python.
        tile_px, overlap_px: side and overlap of the tiles; ``None`` if the whole image was segmented at once.
    """

    source: str
    source_sha256: str | None
    bundle_sha256: str
    backend: str
    versions: dict[str, str]
    raster: RasterInfo | None
    threshold: float = 0.5
    absent_below: float = 0.0
    options: dict[str, Any] | None = None
    tile_px: int | None = None
    overlap_px: int | None = None

    @classmethod
    def of(
        cls,
        source: Path | str,
        scene: Scene,
        segmenter: "Segmenter",
        tiling: Tiling | None = None,
        options: dict[str, Any] | None = None,
    ) -> "Provenance":
        """Return the provenance of results of a segmenter for a scene read from ``source``."""
        name, local = source_name(source), not is_remote(str(source))
        return cls(
            source=name,
            source_sha256=sha256_file(Path(name)) if local else None,
            bundle_sha256=segmenter.bundle.digest,
            backend=segmenter.engine.name,
            versions=_versions(),
            raster=scene.raster,
            threshold=segmenter.rule.threshold,
            absent_below=segmenter.rule.absent_below,
            options=options,
            tile_px=tiling.tile_px if tiling is not None else None,
            overlap_px=tiling.overlap_px if tiling is not None else None,
        )


@cache
def _versions() -> dict[str, str]:
    return {package: version for package in _PACKAGES if (version := installed_version(package))}


def source_name(source: Path | str) -> str:
    """Return the absolute path of a local file, or another name without the secrets of a URL: user, password, query."""
    if not is_remote(str(source)):
        return os.path.realpath(source)  # unlike ``Path.resolve`` also of a link to itself
    return without_secrets(str(source))
