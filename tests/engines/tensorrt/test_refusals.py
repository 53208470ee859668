"""Every failure of TensorRT or CUDA ends in one line: stage, what failed, their own message, a hint."""

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from rsrefseg.engines.backends import select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.command import BuildRequest, run_build
from rsrefseg.engines.tensorrt.engine import TensorRTEngine
from rsrefseg.engines.tensorrt.inspect import check_precision, count_layers
from tests.support.commands import Ran, assert_refused, run_here
from tests.support.doubles.cuda_values import DeviceFault, cudaError_t
from tests.support.doubles.tensorrt_double import VERSIONS, State, doubled
from tests.support.made_bundle import PHRASES, change_stage, make_dynamic
from tests.support.places import Capsys

BUILDING = {
    "Builder.build_serialized_network": "could not build the engine",
    "Runtime.deserialize_cuda_engine": "could not load the engine",
    "ICudaEngine.get_tensor_dtype": "its contract says",
    "EngineInspector.get_engine_information": "could not report the engine's layers",
}
RUNNING = {
    "IExecutionContext.set_device_memory": "could not run",
    "IExecutionContext.infer_shapes": "could not accept tensors of the sizes {'images': 1}",
    "IExecutionContext.get_tensor_shape": "could not accept tensors of the sizes {'images': 1}",
    "IExecutionContext.execute_async_v3": "could not run",
}
CUDA = ("cudaGetDeviceCount", "cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch")
# Reported in the log only: a capture that fails costs time, and at the end the results are there.
LOGGED = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaFree", "cudaGraphExecDestroy")


@pytest.fixture
def built(trt: State, folder: Path) -> Path:
    """A bundle whose engines lie in the cache folder."""
    run_build(BuildRequest(folder))
    return folder


def build(capsys: Capsys, folder: Path, *arguments: str) -> Ran:
    """Without the lines of progress, which go the same way as the error."""
    ran = run_here(capsys, "build", "--bundle", folder, *arguments)
    expected = [line for line in ran.err.splitlines(keepends=True) if line.startswith("rsrefseg: ")]
    return replace(ran, err="".join(expected))


def test_an_option_of_value_0_is_not_ignored(folder: Path) -> None:
    with pytest.raises(BadInputError, match="no effect with --check"):
        run_build(BuildRequest(folder, check=True, optimization_level=0))


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_dynamic_int8_is_refused_before_parsing(
    trt: State, folder: Path, tmp_path: Path, capsys: Capsys, options: tuple[str, ...]
) -> None:
    folder = make_dynamic(folder, tmp_path / "dynamic")
    assert_refused(build(capsys, folder, *options), "--target tensorrt")
    with pytest.raises(BadInputError, match="dynamic"):
        TensorRTEngine(Bundle.open(folder))
    engine, reason = select_backend("auto", Bundle.open(folder))
    with engine:
        assert engine.name == "onnxruntime"
        assert "not tensorrt: tensorrt cannot run stage 'siglip_text'" in reason


def ask(folder: Path, times: int = 1) -> None:
    with Segmenter(Bundle.open(folder), TensorRTEngine(Bundle.open(folder))) as segmenter:
        for _ in range(times):
            segmenter.segment(np.zeros((40, 60, 3), np.uint8), PHRASES[:1])


@pytest.mark.parametrize("call", BUILDING)
def test_a_refusal_while_building(trt: State, folder: Path, cache: Path, call: str, capsys: Capsys) -> None:
    trt.faults.add(call)
    ran = build(capsys, folder)
    assert_refused(ran, "siglip_vision", BUILDING[call])
    if call in ("Builder.build_serialized_network", "Runtime.deserialize_cuda_engine"):
        assert f"[double] {call} was planted to fail" in ran.err
    assert list(cache.glob("engines/*/*")) == []


@pytest.mark.parametrize("call", RUNNING)
def test_a_refusal_while_running(trt: State, built: Path, call: str) -> None:
    trt.faults.add(call)
    with pytest.raises(RSRefSegError) as caught:
        ask(built)
    line = str(caught.value)
    assert RUNNING[call] in line
    assert line.startswith("stage '")
    assert "rsrefseg build --force" in line or "export the bundle again" in line
    assert len(line) < 700
    trt.faults.clear()
    ask(built)


@pytest.mark.parametrize("call", CUDA)
def test_a_status_of_cuda_other_than_success(trt: State, built: Path, call: str) -> None:
    status = cudaError_t.cudaErrorMemoryAllocation if call == "cudaMalloc" else cudaError_t.cudaErrorUnknown
    trt.cuda.faults[call] = status
    with pytest.raises(RSRefSegError) as caught:
        ask(built, times=3)
    line = str(caught.value)
    assert line.startswith(f"{call} of CUDA failed (error {int(status)}, double of {status.name})")
    assert ("close other programs on the GPU" in line) is (call == "cudaMalloc")


@pytest.mark.parametrize("call", LOGGED)
def test_what_fails_at_the_end_or_while_capturing_is_logged(
    trt: State, built: Path, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    trt.cuda.faults[call] = cudaError_t.cudaErrorUnknown
    ask(built, times=3)
    assert any(f"{call} of CUDA failed" in line and "double of cudaErrorUnknown" in line for line in caplog.messages)


def test_a_fault_of_a_kernel_comes_to_light(trt: State, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Mock(side_effect=DeviceFault(cudaError_t.cudaErrorIllegalAddress))
    with Segmenter(Bundle.open(built), TensorRTEngine(Bundle.open(built))) as segmenter:
        monkeypatch.setattr(trt.cuda, "view", fault)
        with pytest.raises(RSRefSegError, match=r"cudaStreamSynchronize of CUDA failed \(error 700"):
            segmenter.segment(np.zeros((40, 60, 3), np.uint8), PHRASES[:1])


def test_every_error_of_the_parser_is_passed_on(trt: State, folder: Path, capsys: Capsys) -> None:
    model = onnx.load(folder / "sam_decoder.onnx")
    for index, node in enumerate(model.graph.node[:2]):
        node.op_type, node.domain, node.name = f"Strange{index}", "somebody", f"decoder.block{index}/op"
    change_stage(folder, Stage.SAM_DECODER, model)
    ran = run_here(capsys, "build", "--bundle", folder)
    assert_refused(replace(ran, err=ran.err.splitlines(keepends=True)[-1]), "stage 'sam_decoder'", "could not parse")
    for index in range(2):
        assert f"decoder.block{index}/op and operator: Strange{index}" in ran.err


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_of_another_precision_is_refused_and_not_kept(
    folder: Path, cache: Path, version: str, capsys: Capsys
) -> None:
    change_stage(folder, Stage.SIGLIP_VISION, precision="fp16")  # the graph is FP32 all the same
    with doubled(version):
        ran = build(capsys, folder)
    assert_refused(ran, "stage 'siglip_vision': requested in FP16", "1 FP32")
    assert list(cache.glob("engines/*/*")) == []


def layer(kind: str, types: str, tactic: str = "") -> dict:
    return {"Name": "x", "LayerType": kind, "TacticName": tactic, "Inputs": [{"Format/Datatype": types}]}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0")], "1 FP16"),
        ([layer("gemm", "Float"), layer("kgen", "Half")], "1 FP32"),
        ([layer("gemm", "Float", "sm80_xmma_gemm_f32f32_tf32f32_f32")], "1 TF32"),
        ([layer("gemm", "Float", "sm80_xmma_gemm_f16f16_f16f32_f32")], "1 FP16"),
        (["conv1 + relu", "softmax"], "1 unknown"),
        ([layer("Myelin", "Float", "sm80_xmma_gemm_f32f32_tf32f32_f32")], "1 TF32"),
        ([layer("Myelin", "Row major linear UInt8 format")], "1 unknown"),
        ([layer("Reformat", "Half") | {"Name": "Reformatting CopyNode for attention"}], "none"),
        ([layer("Myelin", "Float") | {"Name": "{ForeignNode[blocks.0/MatMul...blocks.11/Add]}"}], "1 unknown"),
        ([layer("PointWise", "Float")], "none"),
        ([{"Name": "matmul", "LayerType": None, "Inputs": None, "Outputs": [{"Datatype": "Half"}]}], "1 FP16"),
    ],
)
def test_the_inspector_is_read_in_all_its_forms(layers: list, expected: str) -> None:
    counts = count_layers(json.dumps({"Layers": layers}))
    assert (", ".join(f"{count} {name}" for name, count in counts.items()) or "none") == expected


def test_half_layers_are_taken_only_where_asked_for() -> None:
    expected = json.dumps({"Layers": [layer("gemm", "Half")]})
    assert check_precision(Stage.SAM_ENCODER, "fp16", expected, "11.4") == ("1 FP16", None)
    with pytest.raises(RSRefSegError, match="requested in FP32"):
        check_precision(Stage.SAM_ENCODER, "fp32", expected, "11.4")


@pytest.mark.parametrize(
    ("information", "expected"),
    [("no JSON", "unknown"), ('{"Layers": 3}', "unknown"), ('{"Layers": ["conv"]}', "1 unknown")],
)
def test_an_inspector_without_information_is_a_note_not_a_claim(information: str, expected: str) -> None:
    precision, note = check_precision(Stage.SAM_ENCODER, "fp16", information, "11.4")
    assert precision == expected
    assert note is not None


def test_auto_frees_what_it_does_not_take_and_goes_on(trt: State, built: Path) -> None:
    trt.faults.add("Runtime.deserialize_cuda_engine")
    selection = select_backend("auto", Bundle.open(built))
    with selection.engine:
        assert selection.engine.name == "onnxruntime"
        assert "not tensorrt: stage 'sam_decoder'" in selection.reason
    assert len(trt.alive) == 0


def test_a_build_that_is_interrupted_leaves_nothing(trt: State, folder: Path, cache: Path, capsys: Capsys) -> None:
    """A real Ctrl-C, which reaches the main thread while TensorRT is at work."""
    trt.during_build = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        ran = build(capsys, folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130
    assert "could not" not in ran.err
    assert list(cache.glob("engines/*/*")) == []
    assert len(trt.built) <= 1, "no further stage was begun"
