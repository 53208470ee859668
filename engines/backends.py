"""Backends by name, and the selection of one."""

import contextlib
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple

from .bundle.bundle import Bundle
from .bundle.contracts import Stage
from .engine import Engine, one_line
from .errors import BadInputError, MissingPartError, NotInstalledError, RSRefSegError

_Make = Callable[[Bundle, int | None], Engine]

_PROBE = Stage.SAM_DECODER  # a small stage that `auto` loads to test a backend


class Backend(str, Enum):  # noqa: UP042 - Python 3.10 has no StrEnum
    """The values of ``--backend``."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    OPENVINO_FP32 = "openvino-fp32"
    OPENVINO_GPU = "openvino-gpu"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"

    __str__ = str.__str__


class Selection(NamedTuple):
    """An engine, and one line that says why it was selected."""

    engine: Engine
    reason: str


def parse_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        BadInputError: no backend has that name; the message lists the known ones.
    """
    try:
        return Backend(name)
    except ValueError:
        raise BadInputError(f"unknown backend '{name}': known are {', '.join(Backend)}") from None


def select_backend(name: str, bundle: Bundle, threads: int | None = None) -> Selection:
    """Create the engine of a backend; ``auto`` selects the fastest one that works here and matches FP32.

    If a backend fails to start, ``auto`` tries the next one, whatever the error. A backend that is installed and fails
    to start is also reported on stderr, in one line.

    Args:
        name: a value of ``Backend``.
        bundle: the bundle to run.
        threads: number of CPU threads; by default the cores this process may use.

    Raises:
        BadInputError: no backend has that name, or ``threads`` is less than 1.
        BundleError: a file of the bundle is missing or changed.
        MissingPartError: the backend cannot run here. A backend requested by name is never replaced by another.
    """
    backend = parse_backend(name)
    if threads is not None and threads < 1:
        raise BadInputError(f"the number of threads must be at least 1, got {threads}")
    if backend is not Backend.AUTO:
        return Selection(_MAKERS[backend](bundle, threads), f"{backend}, as requested")
    bundle.graph_path(_PROBE)  # raises errors of the bundle before any backend is tried
    refusals = []
    for candidate, make in _AUTO.items():
        engine: Engine | None = None
        try:
            engine = make(bundle, threads)
            engine.load(_PROBE)
        except Exception as error:
            if engine is not None:
                with contextlib.suppress(Exception):
                    engine.close()  # the next backend may need its memory
            refusals.append(f"not {candidate}: {_short(error)}")
            if not isinstance(error, NotInstalledError) and sys.stderr is not None:
                print(f"rsrefseg: auto does not use {candidate}: {_reason(error)}", file=sys.stderr)
        else:
            return Selection(engine, "; ".join([candidate, *reversed(refusals)]))
    raise MissingPartError(f"no backend can run here ({'; '.join(refusals)}): pip install 'rsrefseg[cpu]'")


def _tensorrt(bundle: Bundle, threads: int | None, build: bool = True) -> Engine:
    from .tensorrt.engine import TensorRTEngine

    return TensorRTEngine(bundle, build=build)


def _tensorrt_rtx(bundle: Bundle, threads: int | None) -> Engine:
    from .tensorrt.engine import RtxEngine

    return RtxEngine(bundle)


def _onnxruntime_cuda(bundle: Bundle, threads: int | None) -> Engine:
    from .onnxruntime.cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(bundle, threads)


def _onnxruntime(bundle: Bundle, threads: int | None) -> Engine:
    from .onnxruntime.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads)


def _openvino(bundle: Bundle, threads: int | None, fp32: bool = False, device: str = "CPU") -> Engine:
    from .openvino.engine import OpenVinoEngine

    return OpenVinoEngine(bundle, threads, fp32, device)


_MAKERS: dict[Backend, _Make] = {
    Backend.TENSORRT: _tensorrt,
    Backend.TENSORRT_RTX: _tensorrt_rtx,
    Backend.ONNXRUNTIME_CUDA: _onnxruntime_cuda,
    Backend.ONNXRUNTIME: _onnxruntime,
    Backend.OPENVINO: _openvino,
    Backend.OPENVINO_FP32: partial(_openvino, fp32=True),
    Backend.OPENVINO_GPU: partial(_openvino, device="GPU"),
}
# The backends that `auto` tries, in order. Less exact ones must be named: OpenVINO in BF16 and on Intel GPUs. ONNX
# Runtime comes before OpenVINO in FP32 because exported graphs are checked with it. `auto` never builds TensorRT
# engines, because a build takes minutes, and never uses TensorRT-RTX, which compiles kernels in its first run.
_AUTO: dict[Backend, _Make] = {
    Backend.TENSORRT: partial(_tensorrt, build=False),
    Backend.ONNXRUNTIME_CUDA: _onnxruntime_cuda,
    Backend.ONNXRUNTIME: _onnxruntime,
    Backend.OPENVINO_FP32: partial(_openvino, fp32=True),
}


def _reason(error: Exception) -> str:
    """Return an error as one line, with its class if it is unexpected."""
    return str(error) if isinstance(error, RSRefSegError) else f"{type(error).__name__}: {one_line(error)}"


def _short(error: Exception) -> str:
    """Return an error without its hint, which follows the first colon in messages of ``RSRefSegError``."""
    return str(error).partition(": ")[0] if isinstance(error, RSRefSegError) else _reason(error)
