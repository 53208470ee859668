"""Every runtime that is here, for graphs that belong to no bundle: one block of a model, in and out one tensor each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.onnxruntime.cuda import cuda_options, why_not_started
from rsrefseg.engines.onnxruntime.library import package
from rsrefseg.engines.openvino import library as openvino_library
from rsrefseg.engines.system.cores import usable_cores

Floats = npt.NDArray[np.float32]
INPUT, OUTPUT = "x", "y"
ONNXRUNTIME_CUDA, TORCH_CUDA = "onnxruntime-cuda-fp16", "torch-cuda-fp16"


class Loaded(NamedTuple):
    """A loaded graph whose input is where it computes: one run to its end, and what the last one gave."""

    run: Callable[[], None]
    result: Callable[[], Floats]


@dataclass(frozen=True, slots=True)
class BlockRuntime:
    """A runtime by name, and how it loads a graph for an input.

    Attributes:
        name: of the runtime and what it computes in.
        load: of the graph's path, the module that was exported (for what runs without a graph) and the input.
        half: whether blocks are given with half islands, as ``export --fp16`` writes them.
        fused: whether it reads attention as one operator, and is measured with that as well.
    """

    name: str
    load: Callable[[Path, Any, Floats], Loaded]
    half: bool = False
    fused: bool = False


def block_runtimes() -> tuple[BlockRuntime, ...]:
    """ONNX Runtime on the CPU; where they can run, OpenVINO in BF16 and FP32, and on a GPU ONNX Runtime and PyTorch."""
    import torch

    found = [BlockRuntime("onnxruntime", _onnxruntime)]
    if openvino_library.why_unavailable() is None:
        if openvino_library.computes_bf16():
            found.append(BlockRuntime("openvino-bf16", lambda path, _, x: _openvino(path, x, "bf16")))
        found.append(BlockRuntime("openvino-fp32", lambda path, _, x: _openvino(path, x, "f32")))
    if why_not_started() is None:
        found.append(BlockRuntime(ONNXRUNTIME_CUDA, _onnxruntime_cuda, half=True, fused=True))
    if torch.cuda.is_available():
        found.append(BlockRuntime(TORCH_CUDA, lambda _, module, x: _torch_cuda(module, x), half=True))
    return tuple(found)


def chosen_runtimes(names: str | None) -> tuple[BlockRuntime, ...]:
    """Those of a comma-separated list; all that are here where there is none.

    Raises:
        BadInputError: one is not here, or none is named.
    """
    runtimes = {runtime.name: runtime for runtime in block_runtimes()}
    if names is None:
        return tuple(runtimes.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted or [names] if name not in runtimes]:
        raise BadInputError(f"--attention cannot be measured on '{unknown[0]}' here: there are {', '.join(runtimes)}")
    return tuple(runtimes[name] for name in wanted)


def _onnxruntime(path: Path, _: Any, x: Floats) -> Loaded:
    onnxruntime = package()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    # Threads that wait in a loop would count as work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return _bound(path, options, ("CPUExecutionProvider", {}), ("cpu", 0), x)


def _onnxruntime_cuda(path: Path, _: Any, x: Floats) -> Loaded:
    return _bound(path, package().SessionOptions(), ("CUDAExecutionProvider", cuda_options(0)), ("cuda", 0), x)


def _bound(path: Path, options: Any, provider: tuple[str, dict[str, str]], place: tuple[str, int], x: Floats) -> Loaded:
    onnxruntime = package()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(x, *place))
    binding.bind_output(OUTPUT, *place)

    def result() -> Floats:
        (value,) = binding.get_outputs()
        return np.asarray(value.numpy(), np.float32)

    return Loaded(lambda: session.run_with_iobinding(binding), result)


def _openvino(path: Path, x: Floats, precision: str) -> Loaded:
    core = openvino_library.core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cores(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = core.read_model(path)
    # One image, as the engine tells it.
    model.reshape({INPUT: [1, *list(model.input(INPUT).partial_shape)[1:]]})
    request = core.compile_model(model, openvino_library.CPU, settings).create_infer_request()

    def run() -> None:
        request.infer({INPUT: x}, share_inputs=True)

    return Loaded(run, lambda: np.asarray(request.get_tensor(OUTPUT).data, np.float32))


def _torch_cuda(module: Any, x: Floats) -> Loaded:
    import torch

    moved, given = module.to("cuda"), torch.from_numpy(x).to("cuda")
    kept: list[torch.Tensor] = []

    def run() -> None:
        with torch.inference_mode():
            kept[:] = [moved(given)]
        torch.cuda.synchronize()

    return Loaded(run, lambda: kept[0].float().cpu().numpy())
