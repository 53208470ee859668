"""The CUDA runtime through cuda-python: every status is checked, every handle is freed by who made it."""

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
    """The GPU that CUDA calls number 0; ``CUDA_VISIBLE_DEVICES`` chooses which one that is.

    Attributes:
        name: as the driver tells it.
        compute_capability: e.g. ``8.7``.
        multiprocessors: how many it has, which a partition or a power mode may lower.
        driver: the CUDA version the driver speaks and, where the system tells it, the driver's own version.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str


class Cuda:
    """The calls this project needs.

    Raises:
        MissingPartError: cuda-python, a driver or a GPU is missing, or the driver is too old.
    """

    def __init__(self) -> None:
        self._rt = _import_runtime()
        self.gpu = self._find_gpu()

    def allocate(self, size_bytes: int, purpose: str) -> int:
        """GPU memory; its address."""
        return int(self._ask(self._rt.cudaMalloc(size_bytes), f"allocate {_mib(size_bytes)} of GPU memory {purpose}"))

    def free(self, address: int) -> None:
        """Give GPU memory back. Waits for everything that runs on the GPU."""
        self._ask(self._rt.cudaFree(address), "free GPU memory")

    def allocate_pinned(self, size_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Host memory that the GPU can copy from and to by itself: its address, and the same as an array."""
        what = f"pin {_mib(size_bytes)} of host memory"
        address = int(self._ask(self._rt.cudaHostAlloc(size_bytes, self._rt.cudaHostAllocDefault), what))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""
        self._ask(self._rt.cudaFreeHost(address), "free pinned host memory")

    def copy_in(self, device: int, host: int, size_bytes: int, stream: Any) -> None:
        """Pinned host memory to the GPU, in the stream's order."""
        self._copy(device, host, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: Any) -> None:
        """GPU to pinned host memory, in the stream's order."""
        self._copy(host, device, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def copy_over(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        """Within the GPU, in the stream's order."""
        self._copy(target, source, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)

    def make_stream(self) -> Any:
        """A stream of its own, which never waits for the default one."""
        return self._ask(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "create a stream")

    def free_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._ask(self._rt.cudaStreamDestroy(stream), "free a stream")

    def wait_for_stream(self, stream: Any, what: str) -> None:
        """Wait on the host until a stream has done all it was given; ``what`` continues "could not".

        Errors of kernels are reported here, whichever call gave them to the stream.
        """
        self._ask(self._rt.cudaStreamSynchronize(stream), what)

    def make_event(self) -> Any:
        """A mark in a stream's order, without a time."""
        return self._ask(self._rt.cudaEventCreateWithFlags(self._rt.cudaEventDisableTiming), "create an event")

    def free_event(self, event: Any) -> None:
        """Give an event back."""
        self._ask(self._rt.cudaEventDestroy(event), "free an event")

    def record(self, event: Any, stream: Any) -> None:
        """Put the mark behind what the stream was given so far."""
        self._ask(self._rt.cudaEventRecord(event, stream), "record an event")

    def wait_in_stream(self, stream: Any, event: Any) -> None:
        """Let a stream wait for a mark in another one; the host continues."""
        self._ask(self._rt.cudaStreamWaitEvent(stream, event, 0), "let a stream wait for an event")

    def wait_for_event(self, event: Any) -> None:
        """Wait on the host for a mark."""
        self._ask(self._rt.cudaEventSynchronize(event), "wait for an event")

    def begin_capture(self, stream: Any) -> None:
        """From now on the stream records a CUDA graph; other threads may go on using the GPU."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(self._rt.cudaStreamBeginCapture(stream, mode), "begin to capture a CUDA graph")

    def end_capture(self, stream: Any) -> Any:
        """The captured graph, ready to be launched."""
        graph = self._ask(self._rt.cudaStreamEndCapture(stream), "capture a CUDA graph")
        try:
            return self._ask(self._rt.cudaGraphInstantiate(graph, 0), "instantiate a CUDA graph")
        finally:
            self._ask(self._rt.cudaGraphDestroy(graph), "free a captured CUDA graph")

    def abandon_capture(self, stream: Any) -> None:
        """End a capture that went wrong. It failed already: what CUDA says of it now tells nothing new."""
        status, *graphs = self._rt.cudaStreamEndCapture(stream)
        if int(status) == _SUCCESS and graphs and graphs[0] is not None:
            self._ask(self._rt.cudaGraphDestroy(graphs[0]), "free a captured CUDA graph")

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a captured graph, in the stream's order."""
        self._ask(self._rt.cudaGraphLaunch(graph, stream), "launch a CUDA graph")

    def free_graph(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._ask(self._rt.cudaGraphExecDestroy(graph), "free a CUDA graph")

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any, stream: Any) -> None:
        what = f"copy {_mib(size_bytes)} to or from the GPU"
        self._ask(self._rt.cudaMemcpyAsync(target, source, size_bytes, kind, stream), what)

    def _find_gpu(self) -> Gpu:
        driver = int(self._ask(self._rt.cudaDriverGetVersion(), "ask the driver for its version"))
        if driver == 0:
            raise MissingPartError("no NVIDIA driver is installed: install the driver of your GPU")
        status, *counted = self._rt.cudaGetDeviceCount()
        if int(status) == _DRIVER_TOO_OLD:
            raise MissingPartError(
                f"the NVIDIA driver speaks CUDA {_version(driver)}, which is too old for this cuda-python:"
                f" update the driver, or pip install 'cuda-python<{driver // 1000 + 1}'"
            )
        if int(status) == _NO_DEVICE or (int(status) == _SUCCESS and counted[0] == 0):
            raise MissingPartError(
                "no NVIDIA GPU is visible: run where there is one, and see that CUDA_VISIBLE_DEVICES does not hide it"
            )
        self._ask((status, *counted), "count the GPUs")
        properties = self._ask(self._rt.cudaGetDeviceProperties(0), "ask the GPU for its name")
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        own = f", driver {_DRIVER_VERSION.read_text().strip()}" if _DRIVER_VERSION.is_file() else ""
        return Gpu(
            name=name.rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            multiprocessors=int(properties.multiProcessorCount),
            driver=f"CUDA {_version(driver)}{own}",
        )

    def _ask(self, answer: tuple[Any, ...], what: str) -> Any:
        """What a call gave beside its status, ``None`` where it gives nothing else.

        Raises:
            RSRefSegError: the status is not success.
        """
        status, *values = answer
        if int(status) != _SUCCESS:
            _, message = self._rt.cudaGetErrorString(status)
            message = message.decode() if isinstance(message, bytes) else str(message)
            hint = (
                "close other programs on the GPU, or ask fewer phrases at once"
                if int(status) == _OUT_OF_MEMORY
                else "`rsrefseg doctor` says what is there; if it is, start again"
            )
            raise RSRefSegError(f"CUDA could not {what} (error {int(status)}, {message}): {hint}")
        return values[0] if values else None


def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime

        return runtime
    except ImportError as error:
        try:
            from cuda import cudart  # as releases before 12.6 called it

            return cudart
        except ImportError:
            raise cannot_import("cuda-python", error, isinstance(error, ModuleNotFoundError)) from error


def cannot_import(package: str, error: ImportError, missing: bool) -> MissingPartError:
    """The error for a package of the extra ``tensorrt`` that is missing or broken."""
    problem = "is not installed" if missing else f"cannot be imported ({' '.join(str(error).split())})"
    return (NotInstalledError if missing else MissingPartError)(f"{package} {problem}: {EXTRA}")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
