"""The CUDA runtime through cuda-python. Every status is checked; the creator of a handle frees it."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingPartError, NotInstalledError, RSRefSegError

_SUCCESS, _OUT_OF_MEMORY, _DRIVER_TOO_OLD, _NO_DEVICE = 0, 2, 35, 100
_DRIVER_VERSION = Path("/sys/module/nvidia/version")
EXTRA = "pip install 'rsrefseg[tensorrt]'"


@dataclass(frozen=True, slots=True)
class Gpu:
    """CUDA device 0; ``CUDA_VISIBLE_DEVICES`` selects the GPU.

    Attributes:
        name: name of the GPU, as the driver reports it.
        compute_capability: e.g. ``8.7``.
        multiprocessors: their number, which a partition or a power mode may lower.
        driver: the CUDA version that the driver supports and, if the system reports it, the version of the driver.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str


class Cuda:
    """The CUDA calls that this project needs; each raises ``RSRefSegError`` if CUDA reports an error.

    Attributes:
        gpu: the GPU.

    Raises:
        MissingPartError: cuda-python, a driver or a GPU is missing, or the driver is too old.
    """

    def __init__(self) -> None:
        self._rt = _import_runtime()
        self.gpu = self._find_gpu()

    def allocate(self, size_bytes: int, purpose: str) -> int:
        """Allocate GPU memory and return its address."""
        return int(self._ask(self._rt.cudaMalloc(size_bytes), f"allocate {_mib(size_bytes)} of GPU memory {purpose}"))

    def free(self, address: int) -> None:
        """Free GPU memory. Waits for all work on the GPU."""
        self._ask(self._rt.cudaFree(address), "free GPU memory")

    def allocate_pinned(self, size_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Allocate pinned host memory, which the GPU copies from and to directly; return its address and an array."""
        what = f"pin {_mib(size_bytes)} of host memory"
        address = int(self._ask(self._rt.cudaHostAlloc(size_bytes, self._rt.cudaHostAllocDefault), what))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, address: int) -> None:
        """Free pinned host memory."""
        self._ask(self._rt.cudaFreeHost(address), "free pinned host memory")

    def copy_in(self, device: int, host: int, size_bytes: int, stream: Any) -> None:
        """Copy pinned host memory to the GPU, in stream order."""
        self._copy(device, host, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: Any) -> None:
        """Copy GPU memory to pinned host memory, in stream order."""
        self._copy(host, device, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def copy_over(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy within GPU memory, in stream order."""
        self._copy(target, source, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)

    def make_stream(self) -> Any:
        """Create a stream that never waits for the default stream."""
        return self._ask(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "create a stream")

    def free_stream(self, stream: Any) -> None:
        """Free a stream."""
        self._ask(self._rt.cudaStreamDestroy(stream), "free a stream")

    def wait_for_stream(self, stream: Any, what: str) -> None:
        """Wait on the host until a stream is done; ``what`` completes the message "CUDA could not ...".

        This call reports errors of kernels, whichever call enqueued them.
        """
        self._ask(self._rt.cudaStreamSynchronize(stream), what)

    def make_event(self) -> Any:
        """Create an event without timing."""
        return self._ask(self._rt.cudaEventCreateWithFlags(self._rt.cudaEventDisableTiming), "create an event")

    def free_event(self, event: Any) -> None:
        """Free an event."""
        self._ask(self._rt.cudaEventDestroy(event), "free an event")

    def record(self, event: Any, stream: Any) -> None:
        """Record an event after the work enqueued on a stream so far."""
        self._ask(self._rt.cudaEventRecord(event, stream), "record an event")

    def wait_in_stream(self, stream: Any, event: Any) -> None:
        """Make a stream wait for an event of another stream; the host continues."""
        self._ask(self._rt.cudaStreamWaitEvent(stream, event, 0), "make a stream wait for an event")

    def wait_for_event(self, event: Any) -> None:
        """Wait on the host for an event."""
        self._ask(self._rt.cudaEventSynchronize(event), "wait for an event")

    def begin_capture(self, stream: Any) -> None:
        """Start to capture a stream as a CUDA graph; other threads may continue to use the GPU."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(self._rt.cudaStreamBeginCapture(stream, mode), "begin to capture a CUDA graph")

    def end_capture(self, stream: Any) -> Any:
        """End a capture and return its graph, ready to launch."""
        graph = self._ask(self._rt.cudaStreamEndCapture(stream), "capture a CUDA graph")
        try:
            return self._ask(self._rt.cudaGraphInstantiate(graph, 0), "instantiate a CUDA graph")
        finally:
            self._ask(self._rt.cudaGraphDestroy(graph), "free a captured CUDA graph")

    def abandon_capture(self, stream: Any) -> None:
        """End a failed capture. Its status is ignored, because the failure was reported before."""
        status, *graphs = self._rt.cudaStreamEndCapture(stream)
        if int(status) == _SUCCESS and graphs and graphs[0] is not None:
            self._ask(self._rt.cudaGraphDestroy(graphs[0]), "free a captured CUDA graph")

    def launch(self, graph: Any, stream: Any) -> None:
        """Launch a captured graph, in stream order."""
        self._ask(self._rt.cudaGraphLaunch(graph, stream), "launch a CUDA graph")

    def free_graph(self, graph: Any) -> None:
        """Free a captured graph."""
        self._ask(self._rt.cudaGraphExecDestroy(graph), "free a CUDA graph")

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any, stream: Any) -> None:
        what = f"copy {_mib(size_bytes)} to or from the GPU"
        self._ask(self._rt.cudaMemcpyAsync(target, source, size_bytes, kind, stream), what)

    def _find_gpu(self) -> Gpu:
        driver = int(self._ask(self._rt.cudaDriverGetVersion(), "get the driver's version"))
        if driver == 0:
            raise MissingPartError("no NVIDIA driver is installed: install the driver of your GPU")
        status, *counted = self._rt.cudaGetDeviceCount()
        if int(status) == _DRIVER_TOO_OLD:
            raise MissingPartError(
                f"the NVIDIA driver supports CUDA {_version(driver)}, which is too old for this cuda-python:"
                f" update the driver, or pip install 'cuda-python<{driver // 1000 + 1}'"
            )
        if int(status) == _NO_DEVICE or (int(status) == _SUCCESS and counted[0] == 0):
            raise MissingPartError(
                "no NVIDIA GPU is visible: use a machine with one, and check CUDA_VISIBLE_DEVICES, which may hide it"
            )
        self._ask((status, *counted), "count the GPUs")
        properties = self._ask(self._rt.cudaGetDeviceProperties(0), "get the properties of the GPU")
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        own = f", driver {_DRIVER_VERSION.read_text().strip()}" if _DRIVER_VERSION.is_file() else ""
        return Gpu(
            name=name.rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            multiprocessors=int(properties.multiProcessorCount),
            driver=f"CUDA {_version(driver)}{own}",
        )

    def _ask(self, result: tuple[Any, ...], what: str) -> Any:
        """Check the status in the result of a call and return its value, or ``None`` if it has none.

        Raises:
            RSRefSegError: the status is not success.
        """
        status, *values = result
        if int(status) != _SUCCESS:
            _, message = self._rt.cudaGetErrorString(status)
            message = message.decode() if isinstance(message, bytes) else str(message)
            hint = (
                "close other programs on the GPU, or pass fewer phrases in one call"
                if int(status) == _OUT_OF_MEMORY
                else "`rsrefseg doctor` reports what is missing; if nothing is, start again"
            )
            raise RSRefSegError(f"CUDA could not {what} (error {int(status)}, {message}): {hint}")
        return values[0] if values else None


def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime

        return runtime
    except ImportError as error:
        try:
            from cuda import cudart  # its name before release 12.6

            return cudart
        except ImportError:
            raise cannot_import("cuda-python", error, isinstance(error, ModuleNotFoundError)) from error


def cannot_import(package: str, error: ImportError, missing: bool) -> MissingPartError:
    """Return the error for a package of the extra ``tensorrt`` that is ``missing``, or broken by ``error``."""
    problem = "is not installed" if missing else f"cannot be imported ({' '.join(str(error).split())})"
    return (NotInstalledError if missing else MissingPartError)(f"{package} {problem}: {EXTRA}")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
