"""The backends by name, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .bundle.bundle import Bundle
from .bundle.contracts import Stage
from .engine import Engine
from .errors import BadInputError, MissingPartError


class Backend(StrEnum):
    """What ``--backend`` takes."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    OPENVINO_FP32 = "openvino-fp32"
    OPENVINO_GPU = "openvino-gpu"
    TENSORRT = "tensorrt"


class Selection(NamedTuple):
    """An engine, and in one line why it is this one."""

    engine: Engine
    reason: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """How a backend is made.

    ``make`` takes the bundle and the number of threads. ``probe`` is a stage that ``auto`` loads before it trusts a
    device that says it is there; ``None`` where nothing of the kind can go wrong. ``make_at_once`` is what ``auto``
    calls instead of ``make``, where that may take minutes. ``by_auto`` is whether that may choose it at all.
    """

    make: Callable[[Bundle, int | None], Engine]
    probe: Stage | None = None
    make_at_once: Callable[[Bundle, int | None], Engine] | None = None
    by_auto: bool = True


def parse_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BadInputError: there is none; the line lists those there are.
    """
    try:
        return Backend(name)
    except ValueError:
        raise BadInputError(f"unknown backend '{name}': known are {', '.join(Backend)}") from None


def select_backend(name: str, bundle: Bundle, threads: int | None = None) -> Selection:
    """Make the engine that ``name`` asks for; ``auto`` takes the fastest one that works here.

    Args:
        name: one of ``Backend``.
        bundle: what to run.
        threads: CPU threads; default is the cores this process may use.

    Raises:
        BadInputError: no backend of that name.
        MissingPartError: the backend cannot run here. A backend asked for by name is never replaced by another one.
    """
    backend = parse_backend(name)
    if threads is not None and threads < 1:
        raise BadInputError(f"the number of threads must be at least 1, got {threads}")
    if backend is not Backend.AUTO:
        return Selection(_entries()[backend].make(bundle, threads), f"{backend}, as asked for")
    refusals: list[str] = []
    for candidate, entry in _entries().items():
        if not entry.by_auto:
            continue
        engine: Engine | None = None
        try:
            engine = (entry.make_at_once or entry.make)(bundle, threads)
            if entry.probe is not None:
                engine.load(entry.probe)
        except MissingPartError as error:
            if engine is not None:
                engine.close()  # what it holds of a GPU is missing to the next one
            refusals.append(f"not {candidate}: {str(error).partition(': ')[0]}")
        else:
            return Selection(engine, "; ".join([str(candidate), *reversed(refusals)]))
    raise MissingPartError(f"no backend can run here ({'; '.join(refusals)}): pip install 'rsrefseg[cpu]'")


def _entries() -> dict[Backend, _Entry]:
    """Every backend but ``auto``, in the order in which that prefers them.

    What is faster because it is less exact is for whoever asks for it: ``auto`` leaves OpenVINO in BF16 and on Intel's
    GPUs out. In FP32 OpenVINO comes after ONNX Runtime, the runtime that the graphs are checked with when they are
    exported.
    """
    from .onnxruntime.cuda import OnnxRuntimeCudaEngine
    from .onnxruntime.engine import OnnxRuntimeEngine
    from .openvino import library as openvino_library
    from .openvino.engine import OpenVinoEngine
    from .tensorrt.engine import TensorRTEngine

    return {
        Backend.TENSORRT: _Entry(
            lambda bundle, threads: TensorRTEngine(bundle),
            probe=Stage.SAM_DECODER,
            make_at_once=lambda bundle, threads: TensorRTEngine(bundle, build=False),
        ),
        Backend.ONNXRUNTIME_CUDA: _Entry(
            lambda bundle, threads: OnnxRuntimeCudaEngine(bundle, threads), probe=Stage.SAM_DECODER
        ),
        Backend.ONNXRUNTIME: _Entry(lambda bundle, threads: OnnxRuntimeEngine(bundle, threads)),
        Backend.OPENVINO_FP32: _Entry(lambda bundle, threads: OpenVinoEngine(bundle, threads, fp32=True)),
        Backend.OPENVINO: _Entry(lambda bundle, threads: OpenVinoEngine(bundle, threads), by_auto=False),
        Backend.OPENVINO_GPU: _Entry(
            lambda bundle, threads: OpenVinoEngine(bundle, threads, device=openvino_library.GPU), by_auto=False
        ),
    }
