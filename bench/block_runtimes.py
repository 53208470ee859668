"""Every runtime that is here, for graphs that belong to no bundle: one block of a model, in and out one tensor each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import openvino_library
from engines.cores import usable_cores

Floats = npt.NDArray[np.float32]
Runner = Callable[[Floats], Floats]
INPUT, OUTPUT = "x", "y"


@dataclass(frozen=True, slots=True)
class BlockRuntime:
    """A runtime by name, and how it loads a graph. The module is what was exported, for what runs without a graph."""

    name: str
    load: Callable[[Path, Any], Runner]


def block_runtimes() -> tuple[BlockRuntime, ...]:
    """ONNX Runtime on the CPU; where they can run, OpenVINO in BF16 and FP32, ONNX Runtime on CUDA, torch on CUDA."""
    import onnxruntime
    import torch

    found = [BlockRuntime("onnxruntime", lambda path, _: _onnxruntime(path, "CPUExecutionProvider"))]
    if openvino_library.why_unavailable() is None:
        if openvino_library.computes_bf16():
            found.append(BlockRuntime("openvino-bf16", lambda path, _: _openvino(path, "bf16")))
        found.append(BlockRuntime("openvino-fp32", lambda path, _: _openvino(path, "f32")))
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        found.append(BlockRuntime("onnxruntime-cuda", lambda path, _: _onnxruntime(path, "CUDAExecutionProvider")))
    if torch.cuda.is_available():
        found.append(BlockRuntime("torch-cuda", lambda _, module: _torch_cuda(module)))
    return tuple(found)


def _onnxruntime(path: Path, provider: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    # Threads that wait in a loop would count as work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=[provider])

    def run(x: Floats) -> Floats:
        result: Floats = session.run([OUTPUT], {INPUT: x})[0]
        return result

    return run


def _openvino(path: Path, precision: str) -> Runner:
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

    def run(x: Floats) -> Floats:
        result: Floats = request.infer({INPUT: x}, share_inputs=True)[OUTPUT]
        return result

    return run


def _torch_cuda(module: Any) -> Runner:
    import torch

    moved = module.to("cuda")

    def run(x: Floats) -> Floats:
        with torch.no_grad():
            result: Floats = moved(torch.from_numpy(x).to("cuda")).cpu().numpy()
        return result

    return run
