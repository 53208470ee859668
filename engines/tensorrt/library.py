"""TensorRT on this machine: its version, the GPU and the logger."""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import MissingPartError
from .cuda import EXTRA, Cuda, Gpu, cannot_import
from .errors import ErrorLog

if TYPE_CHECKING:
    import tensorrt as trt

# The oldest supported version, which JetPack 6 contains.
_OLDEST = (10, 3)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Platform:
    """The versions and the GPU that an engine is built for; on others it may fail to run, or run slower.

    Attributes:
        tensorrt: version, e.g. ``10.9.0.34`` or ``RTX 1.7.1.116``.
        gpu: name of the GPU, or compute capabilities.
        parts: everything that engines depend on, by the names that messages use.
    """

    tensorrt: str
    gpu: str
    parts: dict[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{name} {part}" for name, part in self.parts.items())

    @property
    def file_name(self) -> str:
        """A name for files of this platform; those of other drivers share it."""
        parts = [part for name, part in self.parts.items() if name != "driver"]
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)


class Library:
    """TensorRT and the CUDA runtime of this machine.

    Attributes:
        logger: the logger for every builder, parser and runtime.
        error_log: errors that TensorRT reported to the logger.
        cuda: the CUDA runtime.
        platform: versions and GPU.

    Raises:
        MissingPartError: TensorRT, cuda-python, a driver or a GPU is missing or too old.
    """

    def __init__(self) -> None:
        try:
            import tensorrt
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "tensorrt"
            raise cannot_import("tensorrt", error, missing) from error
        version = str(getattr(tensorrt, "__version__", "unknown"))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise MissingPartError(f"TensorRT {version} is too old, {oldest} is needed: {EXTRA}")
        self.cuda = Cuda()
        self.platform = _platform(version, self.cuda.gpu)
        self.logger, self.error_log = make_logger(tensorrt)
        self._runtime: trt.Runtime | None = None

    def runtime(self) -> "trt.Runtime":
        """Return the runtime that loads engines. It lives as long as this object, which must outlive the engines."""
        import tensorrt as trt

        if self._runtime is None:
            self._runtime = trt.Runtime(self.logger)
        return self._runtime


def _platform(version: str, gpu: Gpu) -> Platform:
    parts = {
        "TensorRT": version,
        "GPU": gpu.name,
        "compute capability": gpu.compute_capability,
        "multiprocessors": str(gpu.multiprocessors),
        "driver": gpu.driver,
    }
    return Platform(version, gpu.name, parts)


@lru_cache
def make_logger(module: Any) -> tuple[Any, ErrorLog]:
    """Create the logger of a module of TensorRT, once: it keeps the first logger it receives and ignores later ones."""
    error_log = ErrorLog()
    severity = module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, level: Any, msg: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                error_log.add(msg)
            elif level == severity.WARNING:
                error_log.warn(msg)
            else:
                _LOG.debug("%s", msg)

    return Logger(), error_log
