"""TensorRT 10 and 11, and TensorRT-RTX: the imported module, its version, the logger, and the platform of engines."""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import MissingPartError, NotInstalledError
from .cuda import EXTRA, Gpu
from .errors import ErrorLog

if TYPE_CHECKING:
    import tensorrt as trt

RTX = "TensorRT-RTX"
_RTX_EXTRA = "pip install 'rsrefseg[tensorrt-rtx]', with Python 3.11 or later"
_OLDEST = (10, 3)  # the oldest supported version, which JetPack 6 contains
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Library:
    """One kind of TensorRT.

    Attributes:
        module: the imported module; its names are those of TensorRT 11.
        version: e.g. ``10.9.0.34``.
        is_rtx: whether it is TensorRT-RTX.
        logger: the logger for every builder, parser and runtime.
        log: errors and warnings that it reported to the logger.
    """

    module: Any
    version: str
    is_rtx: bool
    logger: Any
    log: ErrorLog
    _runtime: "trt.Runtime | None" = None

    def runtime(self) -> "trt.Runtime":
        """Return the runtime that loads engines. It lives as long as this object, which must outlive the engines."""
        if self._runtime is None:
            self._runtime = self.module.Runtime(self.logger)
        return self._runtime

    def __str__(self) -> str:
        return f"{RTX if self.is_rtx else 'TensorRT'} {self.version}"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an engine is built for; elsewhere it may fail to run, or run slower.

    Attributes:
        text: a short description.
        parts: versions and GPU, by the names that messages use.
    """

    text: str
    parts: dict[str, str]

    def __str__(self) -> str:
        return self.text

    @property
    def file_name(self) -> str:
        """A name for files of this platform; those of other drivers share it."""
        parts = [part for name, part in self.parts.items() if name != "driver"]
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)


def gpu_platform(library: Library, gpu: Gpu) -> Platform:
    """Return the platform of engines that TensorRT 10 or 11 builds for a GPU of this machine."""
    parts = {
        "TensorRT": library.version,
        "GPU": gpu.name,
        "compute capability": gpu.compute_capability,
        "multiprocessors": str(gpu.multiprocessors),
        "driver": gpu.driver,
    }
    return Platform(f"{library}, {gpu.name} ({gpu.compute_capability}), {gpu.driver}", parts)


def named_platform(library: Library, gpus: tuple[str, ...]) -> Platform:
    """Return the platform of engines that TensorRT-RTX builds for GPU classes such as ``sm86``."""
    names = ", ".join(gpus)
    return Platform(f"{library}, {names}", {RTX: library.version, "GPUs": names})


def open_tensorrt() -> Library:
    """Import TensorRT 10 or 11.

    Raises:
        MissingPartError: it is not installed, cannot be imported, or is too old.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise _cannot_import("tensorrt", error, "tensorrt", EXTRA) from error
    version = str(getattr(tensorrt, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise MissingPartError(f"TensorRT {version} is too old, {'.'.join(map(str, _OLDEST))} is needed: {EXTRA}")
    return Library(tensorrt, version, False, *_make_logger(tensorrt))


def open_rtx() -> Library:
    """Import TensorRT-RTX, whose parser and compiler need no GPU and no driver.

    Raises:
        MissingPartError: it is not installed, or cannot be imported.
    """
    try:
        try:
            import tensorrt_rtx as module
        except ModuleNotFoundError:
            import tensorrt_rtx_bindings as module  # installed without the meta package
    except (ImportError, OSError) as error:
        raise _cannot_import(RTX, error, "tensorrt_rtx_bindings", _RTX_EXTRA) from error
    return Library(module, str(module.__version__), True, *_make_logger(module))


def _cannot_import(name: str, error: Exception, module: str, hint: str) -> MissingPartError:
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return NotInstalledError(f"{name} is not installed: {hint}")
    return MissingPartError(f"{name} cannot be imported ({' '.join(str(error).split())}): {hint}")


@lru_cache
def _make_logger(module: Any) -> tuple[Any, ErrorLog]:
    """Create the logger of a module, once per process: it keeps the first logger it receives and ignores later ones."""
    log, severity = ErrorLog(), module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, level: Any, msg: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                log.add(msg)
            elif level == severity.WARNING:
                log.warn(msg)
            else:
                _LOG.debug("%s", msg)

    return Logger(), log
