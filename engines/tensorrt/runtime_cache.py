"""Kernels that TensorRT-RTX compiled on this GPU, kept in the user's cache folder for later processes."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from ..errors import RSRefSegError
from ..system.files import atomic_write_bytes, cache_folder
from .library import Library, Platform

_LOG = logging.getLogger(__name__)


class RuntimeCache:
    """The runtime cache of all engines of a session.

    Args:
        library: TensorRT-RTX.
        platform: version and GPU, for which alone the kernels are valid.
    """

    def __init__(self, library: Library, platform: Platform) -> None:
        self._trt = library.module
        self.path: Path = cache_folder() / "kernels" / f"{platform.file_name}.cache"
        self._cache: Any = None
        self._stored = b""

    def configured(self, engine: Any, allocation: Any) -> Any:
        """Return a runtime configuration for contexts of an engine.

        Args:
            engine: the loaded engine.
            allocation: strategy by which its contexts allocate activation memory.
        """
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        # Compiled before the first run: a CUDA graph would keep the slower kernels that run meanwhile.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):  # no file yet, or one that cannot be read
                self._stored = self.path.read_bytes()
            if self._stored and not self._cache.deserialize(self._stored):
                _LOG.warning("'%s' does not fit this machine any more: kernels are compiled again", self.path)
        config.set_runtime_cache(self._cache)
        return config

    def keep(self) -> None:
        """Write the kernels for later processes. A failure is logged: the next process compiles them again."""
        serialized = None if self._cache is None else self._cache.serialize()
        data = b"" if serialized is None else bytes(serialized)
        if data and data != self._stored:
            try:
                atomic_write_bytes(self.path, data)
            except RSRefSegError as error:
                _LOG.warning("compiled kernels are not kept: %s", error)
