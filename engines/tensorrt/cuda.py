"""The CUDA runtime through cuda-python: every status is checked, and what was made is freed together."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingPartError, NotInstalledError, RSRefSegError

_OUT_OF_MEMORY, _DRIVER_TOO_OLD, _NO_DEVICE = 2, 35, 100
_DRIVER_VERSION = Path("/sys/module/nvidia/version")
EXTRA = "pip install 'rsrefseg[tensorrt]'"


@dataclass(frozen=True, slots=True)
class Gpu:
    """CUDA device 0 (``CUDA_VISIBLE_DEVICES`` selects it), with the versions of CUDA and driver as text."""

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str


class Cuda:
    """Calls of the CUDA runtime, and the memory, streams, events and graphs that were made with them.

    Attributes:
        runtime: the module of cuda-python.
        gpu: the GPU.

    Raises:
        MissingPartError: cuda-python, a driver or a GPU is missing, or the driver is too old.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise cannot_import("cuda-python", error) from error
        self.runtime: Any = runtime
        self._made: list[tuple[str, Any]] = []
        self.gpu = self._find_gpu()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime by name and return its value; raises RSRefSegError unless it succeeds."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if int(status):
            message = self.runtime.cudaGetErrorString(status)[1].decode()
            hint = "`rsrefseg doctor` reports what is missing; if nothing is, start again"
            if int(status) == _OUT_OF_MEMORY:
                hint = "close other programs on the GPU, or pass fewer phrases in one call"
            raise RSRefSegError(f"{name} of CUDA failed (error {int(status)}, {message}): {hint}")
        return values[0] if values else None

    def allocate(self, size_bytes: int) -> int:
        """Allocate GPU memory and return its address."""
        return int(self._make("cudaMalloc", "cudaFree", size_bytes))

    def pin(self, size_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Allocate host memory that the GPU copies from and to directly; return its address and an array."""
        address = int(self._make("cudaHostAlloc", "cudaFreeHost", size_bytes, self.runtime.cudaHostAllocDefault))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def stream(self) -> Any:
        """Create a stream that never waits for the default stream."""
        return self._make("cudaStreamCreateWithFlags", "cudaStreamDestroy", self.runtime.cudaStreamNonBlocking)

    def event(self) -> Any:
        """Create an event without timing."""
        return self._make("cudaEventCreateWithFlags", "cudaEventDestroy", self.runtime.cudaEventDisableTiming)

    def copy(self, target: int, source: int, size_bytes: int, way: str, stream: Any) -> None:
        """Copy memory in stream order; ``way`` is ``HostToDevice``, ``DeviceToHost`` or ``DeviceToDevice``."""
        kind = getattr(self.runtime.cudaMemcpyKind, f"cudaMemcpy{way}")
        self.call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Return a CUDA graph, ready to launch, of what ``enqueue`` enqueues on a stream."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        finally:  # also ends a capture that failed
            captured = self.call("cudaStreamEndCapture", stream)
        try:
            return self._make("cudaGraphInstantiate", "cudaGraphExecDestroy", captured, 0)
        finally:
            self.call("cudaGraphDestroy", captured)

    def free(self) -> list[RSRefSegError]:
        """Free all that was made, the newest first, and return the errors: raised, they would hide an earlier one."""
        errors = []
        while self._made:
            try:
                self.call(*self._made.pop())
            except RSRefSegError as error:
                errors.append(error)
        return errors

    def _make(self, name: str, free: str, *arguments: Any) -> Any:
        made = self.call(name, *arguments)
        self._made.append((free, made))
        return made

    def _find_gpu(self) -> Gpu:
        driver = int(self.call("cudaDriverGetVersion"))
        if driver == 0:
            raise MissingPartError("no NVIDIA driver is installed: install the driver of your GPU")
        status, count = self.runtime.cudaGetDeviceCount()
        if int(status) == _DRIVER_TOO_OLD:
            raise MissingPartError(
                f"the NVIDIA driver supports CUDA {_version(driver)}, which is too old for this cuda-python:"
                f" update the driver, or pip install 'cuda-python<{driver // 1000 + 1}'"
            )
        if int(status) == _NO_DEVICE or count == 0:
            raise MissingPartError(
                "no NVIDIA GPU is visible: use a machine with one, and check CUDA_VISIBLE_DEVICES, which may hide it"
            )
        self.call("cudaGetDeviceCount")  # any other error
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        own = f", driver {_DRIVER_VERSION.read_text().strip()}" if _DRIVER_VERSION.is_file() else ""
        capability = f"{properties.major}.{properties.minor}"
        driver_text = f"CUDA {_version(driver)}{own}"
        return Gpu(name.rstrip("\0"), capability, int(properties.multiProcessorCount), driver_text)


def cannot_import(package: str, error: Exception, hint: str = EXTRA) -> MissingPartError:
    """Return the error for a package that could not be imported, because it is missing or broken."""
    if isinstance(error, ModuleNotFoundError):
        return NotInstalledError(f"{package} is not installed: {hint}")
    return MissingPartError(f"{package} cannot be imported ({' '.join(str(error).split())}): {hint}")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
