"""TensorRT 10, 11 and RTX: the module, polygraphy's loaders for it, its log, and the platform of its engines."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ..bundle.contracts import Stage
from ..engine import one_line
from ..errors import MissingPartError, RSRefSegError
from .cuda import EXTRA, Gpu, cannot_import

RTX = "TensorRT-RTX"
_RTX_EXTRA = "pip install 'rsrefseg[tensorrt-rtx]', with Python 3.11 or later"
_OLDEST = (10, 3)  # the oldest supported version, which JetPack 6 contains


class Log(logging.Handler):
    """Errors and warnings of TensorRT and polygraphy since they were last cleared."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message; polygraphy's critical ones only repeat that a step failed."""
        if record.levelno < logging.CRITICAL:
            kept = self.errors if record.levelno >= logging.ERROR else self.warnings
            kept.append(" ".join(record.getMessage().split()))

    def clear(self) -> None:
        """Drop all messages."""
        self.errors.clear()
        self.warnings.clear()


LOG = Log()


@dataclass(eq=False)
class Library:
    """One kind of TensorRT: its imported module, whose names are those of TensorRT 11, and its version."""

    module: Any
    version: str
    is_rtx: bool

    @cached_property
    def loaders(self) -> dict[str, Any]:
        """Polygraphy's loaders for this kind, by name; raises MissingPartError if it is not installed."""
        # Its modules choose the kind when they are imported, so each kind has its own.
        for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
            del sys.modules[name]
        try:
            from polygraphy import config

            config.USE_TENSORRT_RTX = self.is_rtx
            from polygraphy.backend import tensorrt_rtx, trt
            from polygraphy.logger import G_LOGGER
        except ImportError as error:
            raise cannot_import("polygraphy", error) from error
        G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter = True, False, False
        G_LOGGER.module_severity = G_LOGGER.WARNING
        G_LOGGER.python_logger.handlers, G_LOGGER.python_logger.propagate = [LOG], False
        return {**vars(trt), **vars(tensorrt_rtx)}

    @cached_property
    def runtime(self) -> Any:
        """The runtime that loads engines; it must outlive them."""
        return self.module.Runtime(self.loaders["get_trt_logger"]())

    @contextmanager
    def step(self, stage: Stage, what: str, hint: str) -> Iterator[None]:
        """Turn every failure inside into an RSRefSegError: stage, "could not ``what``", TensorRT's log, hint."""
        LOG.clear()
        try:
            yield
        except RSRefSegError:
            raise
        except Exception as error:
            nodes = [line for line in LOG.errors if line.startswith("In node")]  # how the parser names a node
            reason = "; ".join(dict.fromkeys(nodes or LOG.errors)) or str(error)
            reason = one_line(RuntimeError(reason))
            raise RSRefSegError(f"stage '{stage}': {self} could not {what} ({reason}): {hint}") from error

    def __str__(self) -> str:
        return f"{RTX if self.is_rtx else 'TensorRT'} {self.version}"


def require(result: Any) -> Any:
    """Return the result of a call of TensorRT; None and False mean that it failed and logged why."""
    if result is None or result is False:
        raise RuntimeError("TensorRT gave no reason")
    return result


@dataclass(frozen=True, slots=True)
class Platform:
    """What an engine is built for: a short description, and versions and GPU by the names that messages use."""

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
    """Import TensorRT 10 or 11; raises MissingPartError if it is missing, broken or too old."""
    try:
        import tensorrt
    except ImportError as error:
        raise cannot_import("tensorrt", error) from error
    library = _library(tensorrt, False)
    numbers = re.match(r"(\d+)\.(\d+)", library.version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise MissingPartError(f"{library} is too old, {'.'.join(map(str, _OLDEST))} is needed: {EXTRA}")
    return library


def open_rtx() -> Library:
    """Import TensorRT-RTX, whose compiler needs no GPU and no driver; raises MissingPartError if it is missing."""
    try:
        try:
            import tensorrt_rtx as module
        except ModuleNotFoundError:
            import tensorrt_rtx_bindings as module  # installed without the meta package

            sys.modules["tensorrt_rtx"] = module  # the name that polygraphy imports
    except (ImportError, OSError) as error:
        raise cannot_import(RTX, error, _RTX_EXTRA) from error
    return _library(module, True)


@cache
def _library(module: Any, is_rtx: bool) -> Library:
    """Return the library of a module: one per process, because TensorRT keeps the first logger that it receives."""
    return Library(module, str(getattr(module, "__version__", "unknown")), is_rtx)
