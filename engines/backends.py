"""The backends by name, and the choice among them."""

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

_PROBE = Stage.SAM_DECODER  # a small stage, which `auto` loads before it trusts a backend


class Backend(str, Enum):  # noqa: UP042 - Python 3.10 has no StrEnum
    """What ``--backend`` takes."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    OPENVINO_FP32 = "openvino-fp32"
    OPENVINO_GPU = "openvino-gpu"
    TENSORRT = "tensorrt"

    __str__ = str.__str__


class Selection(NamedTuple):
    """An engine, and in one line why it was selected."""

    engine: Engine
    reason: str


def parse_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BadInputError: there is none; the message lists the known ones.
    """
    try:
        return Backend(name)
    except ValueError:
        raise BadInputError(f"unknown backend '{name}': known are {', '.join(Backend)}") from None


def select_backend(name: str, bundle: Bundle, threads: int | None = None) -> Selection:
    """Make the engine of a backend; ``auto`` takes the fastest one that works here and matches FP32.

    ``auto`` continues with the next backend when one fails to start, whatever the error. What is installed but does not
    start is also reported on stderr, in one line.

    Args:
        name: one of ``Backend``.
        bundle: what to run.
        threads: CPU threads; default is the cores this process may use.

    Raises:
        BadInputError: no backend of that name.
        BundleError: a file of the bundle is missing or changed.
        MissingPartError: the backend cannot run here. A backend asked for by name is never replaced by another one.
    """
    backend = parse_backend(name)
    if threads is not None and threads < 1:
        raise BadInputError(f"the number of threads must be at least 1, got {threads}")
    if backend is not Backend.AUTO:
        return Selection(_MAKERS[backend](bundle, threads), f"{backend}, as asked for")
    bundle.graph_path(_PROBE)  # an error of the bundle is not one of the backends
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
            if not isinstance(error, NotInstalledError):
                print(f"rsrefseg: auto does not use {candidate}: {_reason(error)}", file=sys.stderr)
        else:
            return Selection(engine, "; ".join([candidate, *reversed(refusals)]))
    raise MissingPartError(f"no backend can run here ({'; '.join(refusals)}): pip install 'rsrefseg[cpu]'")


def _tensorrt(bundle: Bundle, threads: int | None, build: bool = True) -> Engine:
    from .tensorrt.engine import TensorRTEngine

    return TensorRTEngine(bundle, build=build)


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
    Backend.ONNXRUNTIME_CUDA: _onnxruntime_cuda,
    Backend.ONNXRUNTIME: _onnxruntime,
    Backend.OPENVINO: _openvino,
    Backend.OPENVINO_FP32: partial(_openvino, fp32=True),
    Backend.OPENVINO_GPU: partial(_openvino, device="GPU"),
}
# What `auto` tries, in this order. Less exact ones must be named: OpenVINO in BF16 and on Intel's GPUs. ONNX Runtime
# comes before OpenVINO in FP32, since exported graphs are checked with it. TensorRT does not build engines here, which
# would take minutes.
_AUTO: dict[Backend, _Make] = {
    Backend.TENSORRT: partial(_tensorrt, build=False),
    Backend.ONNXRUNTIME_CUDA: _onnxruntime_cuda,
    Backend.ONNXRUNTIME: _onnxruntime,
    Backend.OPENVINO_FP32: partial(_openvino, fp32=True),
}


def _reason(error: Exception) -> str:
    """The error in one line; of an unexpected one also its class."""
    return str(error) if isinstance(error, RSRefSegError) else f"{type(error).__name__}: {one_line(error)}"


def _short(error: Exception) -> str:
    """The reason without its hint, which follows the first colon in messages of ``RSRefSegError``."""
    return str(error).partition(": ")[0] if isinstance(error, RSRefSegError) else _reason(error)
