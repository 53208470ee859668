"""Runs a bundle on TensorRT-RTX: with engines in a folder that the user names, or built for the GPU of this machine."""

import os
from pathlib import Path

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from .build import Compiler
from .engine import TensorRTEngine
from .gpus import parse_gpus
from .library import Library, named_platform, open_rtx
from .portable import open_portable
from .records import StoredEngine
from .runtime_cache import RuntimeCache

ENGINES_VARIABLE = "RSREFSEG_ENGINES"


class RtxEngine(TensorRTEngine):
    """Runs every stage as an engine of TensorRT-RTX on CUDA device 0.

    ``$RSREFSEG_ENGINES`` names a folder from ``rsrefseg build --runtime tensorrt-rtx``. Without it, the constructor
    builds missing and stale engines for this GPU. The first run on a GPU compiles the engines' kernels, which takes
    seconds, and keeps them in the user's cache folder.

    Args:
        bundle: the bundle to run.

    Raises:
        MissingPartError: TensorRT-RTX, CUDA or a GPU is missing, or the named folder is for another GPU or version.
        BundleError: the named folder is of another bundle.
        RSRefSegError: an engine cannot be built.
    """

    name = "tensorrt-rtx"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)

    def _open_library(self) -> Library:
        return open_rtx()

    @property
    def _sm(self) -> str:
        return f"sm{self._cuda.gpu.compute_capability.replace('.', '')}"

    def _compiler(self) -> Compiler:
        return Compiler.for_gpus(self._library, parse_gpus(self._sm))

    def _find(self, build: bool) -> dict[Stage, StoredEngine]:
        folder = os.environ.get(ENGINES_VARIABLE)
        if not folder:
            return super()._find(build)
        return open_portable(Path(folder), self.bundle, self._library.version, self._sm)

    def _runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._library, named_platform(self._library, (self._sm,)))
