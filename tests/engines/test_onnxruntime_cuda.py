"""The engine that keeps tensors on a GPU, run as a whole on the CPU: ONNX Runtime binds host memory in the same way."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from rsrefseg.engines.backends import select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.errors import BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime import cuda as onnxruntime_cuda
from rsrefseg.engines.onnxruntime import device_session
from rsrefseg.engines.onnxruntime import engine as onnxruntime_engine
from rsrefseg.engines.onnxruntime.cuda import (
    RECORDED,
    OnnxRuntimeCudaEngine,
    cuda_options,
    node_placement,
    why_not_started,
)
from rsrefseg.engines.onnxruntime.device_session import BoundTensor, DeviceSession
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, make_bundle
from tests.support.openvino_answers import asked, picture

NO_NODE = "AzureExecutionProvider"  # part of the CPU package; it takes none of these nodes
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cuda") / "bundle").root


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


def bound(bundle: Bundle) -> OnnxRuntimeCudaEngine:
    return OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu")


def recordings(engine: OnnxRuntimeCudaEngine) -> dict[Stage, int]:
    return {stage: len(model.recordings) for stage, model in engine._models.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert isinstance(found[name], np.ndarray)
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


def test_bound_tensors_give_the_same_bits_as_arrays(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for sample in load_reference(bundle):
            for phrases in (sample.phrases[:1], sample.phrases * 3):
                image = sample.tensors["image"]
                assert_same(asked(engine, image, phrases), asked(plain, image, phrases))


def test_the_image_is_uploaded_once_and_only_logits_are_downloaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, fetched = [], []
    upload, fetch = onnxruntime.OrtValue.update_inplace, onnxruntime.OrtValue.numpy
    monkeypatch.setattr(
        onnxruntime.OrtValue, "update_inplace", lambda value, array: uploads.append(array.shape) or upload(value, array)
    )
    monkeypatch.setattr(
        onnxruntime.OrtValue, "numpy", lambda value: fetched.append(tuple(value.shape())) or fetch(value)
    )
    image = picture(bundle)
    with bound(bundle) as engine:
        tokens = bundle.tokenizer().encode(PHRASES)
        texts = engine.encode_text(tokens.input_ids, tokens.token_mask)
        fetched.clear()  # what is made of phrases is kept on the host
        encoded = engine.encode_image(image)
        assert all(isinstance(tensor, BoundTensor) for tensor in encoded.values())
        logits = engine.answer(encoded, texts)
    assert uploads == [image.shape]
    assert fetched == [logits.shape]


def test_an_upload_does_not_write_into_the_callers_array(bundle: Bundle) -> None:
    """The device's memory is used again, and must not be the caller's where both are host memory."""
    first = picture(bundle, 1)
    kept = first.copy()
    with bound(bundle) as engine:
        engine.encode_image(first)
        engine.encode_image(picture(bundle, 2))
    assert np.array_equal(first, kept)


# Replays


def test_repeated_runs_are_replayed_with_the_same_bits(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    sample = load_reference(bundle)[0]
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for turn in range(4):  # numbers of phrases take turns, so that each recording follows another's
            for number in (1, 3, 2):
                phrases = (sample.phrases * 3)[turn : turn + number]
                assert_same(
                    asked(engine, sample.tensors["image"], phrases), asked(plain, sample.tensors["image"], phrases)
                )
        assert recordings(engine) == dict.fromkeys(RECORDED, 3) | {Stage.SIGLIP_VISION: 1, Stage.SAM_ENCODER: 0}
        assert not any(model.refusal for model in engine._models.values())


def test_answers_outlive_the_next_replay(bundle: Bundle) -> None:
    """A recording writes into the same memory each time."""
    tokens = bundle.tokenizer().encode(PHRASES)
    with bound(bundle) as engine:
        encoded = [engine.encode_image(picture(bundle, seed)) for seed in (1, 2)]
        texts = engine.encode_text(tokens.input_ids, tokens.token_mask)
        first = [engine.answer(encoded[0], texts) for _ in range(4)][-1]
        kept = first.copy()
        second = engine.answer(encoded[1], texts)
        stage = engine.run_resident(Stage.SIGLIP_TEXT, {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask})
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert all(isinstance(tensor, np.ndarray) for tensor in stage.values())


def test_features_outlive_the_next_image_and_the_engine(bundle: Bundle) -> None:
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        features = [engine.encode_image(picture(bundle, seed)) for seed in range(5)]
        assert recordings(engine)[Stage.SIGLIP_VISION] == 1  # the last three are of the recording
        wanted = [plain.encode_image(picture(bundle, seed)) for seed in range(5)]
    for found, alone in zip(features, wanted, strict=True):
        assert_same(engine.to_host(found), alone)


def test_a_stage_keeps_its_thread_and_runs_alone_while_it_may_be_recorded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps handles and recordings for every thread apart: in a new thread a stage would start again."""
    events: list[tuple[Stage, str, int]] = []
    run = OnnxRuntimeCudaEngine._run_session

    def noted(engine: OnnxRuntimeCudaEngine, stage: Stage, model: DeviceSession, feeds: Mapping[str, Any]) -> Any:
        events.append((stage, "begins", threading.get_ident()))
        made = run(engine, stage, model, feeds)
        events.append((stage, "ends", threading.get_ident()))
        return made

    monkeypatch.setattr(OnnxRuntimeCudaEngine, "_run_session", noted)
    with bound(bundle) as engine:
        for seed in range(3):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asked, engine, picture(bundle, seed), PHRASES).result()
        assert recordings(engine)[Stage.SIGLIP_VISION] == 1
    threads = {stage: {thread for other, _, thread in events if other is stage} for stage in Stage}
    vision = threads.pop(Stage.SIGLIP_VISION)
    assert len(vision) == len(set.union(*threads.values())) == 1
    assert vision != set.union(*threads.values())
    encoders = [(stage, event) for stage, event, _ in events if stage in IMAGE_STAGES]
    assert encoders == [(stage, event) for stage in IMAGE_STAGES for event in ("begins", "ends")] * 3


@pytest.mark.parametrize("stage", RECORDED)
def test_no_recorded_stage_broadcasts_the_batches_of_a_product(exported: Exported, stage: Stage) -> None:
    """ONNX Runtime keeps the addresses of their parts in host memory, which a recording would read again later.

    One matrix for all, or as many as there are on the other side, is no broadcast.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(Bundle.open(exported.bundle).graph_path(stage)))
    graph = model.graph
    shapes: dict[str, list[int | str]] = {value.name: list(value.dims) for value in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    products = [node.input for node in graph.node if node.op_type == "MatMul"]
    assert products
    for one, other in products:
        batches = shapes[other][:-2]
        assert all(size == 1 for size in batches) or shapes[one][:-2] == batches, (one, other)


def test_the_number_of_recordings_is_limited(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_session, "_MOST_RECORDINGS", 1)
    tokens = bundle.tokenizer().encode(PHRASES)
    with bound(bundle) as engine:
        for count in (1, 2):
            for _ in range(4):
                engine.encode_text(tokens.input_ids[:count], tokens.token_mask[:count])
        assert recordings(engine)[Stage.SIGLIP_TEXT] == 1


def test_a_run_that_cannot_be_recorded_continues_without_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    tokens = bundle.tokenizer().encode(PHRASES[:1])
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        wanted = plain.run(Stage.SIGLIP_TEXT, {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask})
        monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", refuse)
        for _ in range(4):
            (found,) = engine.encode_text(tokens.input_ids, tokens.token_mask)
            assert np.array_equal(found["word_features"], wanted["word_features"][0])
        assert engine.provider_of(Stage.SIGLIP_TEXT).endswith(
            "; not replayed: operation not permitted when stream is capturing"
        )


def test_a_graph_that_cannot_be_recorded_is_loaded_without(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "why_not_started", lambda device_id: None)
    asked_for = []

    def refuse(*_: Any, **options: Any) -> None:
        asked_for.append("enable_cuda_graph" in options["providers"][0][1])
        reason = "This session cannot use the graph capture feature" if asked_for[-1] else "the end of this double"
        raise RuntimeError(reason)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(MissingPartError, match="the end of this double"):
        OnnxRuntimeCudaEngine(bundle).load(Stage.SAM_DECODER)
    assert asked_for == [True, False]


class FailingSession:
    """A double of a session whose run ends as ONNX Runtime's does on a GPU without free memory."""

    def io_binding(self) -> Any:
        raise RuntimeError(
            "/src/cuda_call.cc:154 std::conditional_t<THRW, void> CudaCall(ERRTYPE)\n"
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=edge ; file=/src/allocator.cc ; line=9"
        )


def test_a_run_that_fails_is_one_line_in_cudas_words(bundle: Bundle) -> None:
    engine = bound(bundle)
    engine.load()
    engine._models[Stage.SIGLIP_VISION].session = FailingSession()
    with pytest.raises(RSRefSegError) as refusal:
        engine.encode_image(picture(bundle))
    assert str(refusal.value).endswith("'siglip_vision' failed in onnxruntime: CUDA failure 2: out of memory")


# The provider


@pytest.mark.skipif(HAS_CUDA, reason="this machine has the provider")
def test_a_package_without_the_provider_is_reported_with_a_hint() -> None:
    reason = why_not_started()
    assert reason is not None
    assert "has no CUDAExecutionProvider: pip uninstall onnxruntime, then pip install 'rsrefseg[cuda]'" in reason


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of onnxruntime-gpu where nothing of CUDA is installed: it prints, logs, and continues on the CPU."""
    real = onnxruntime.InferenceSession
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls() -> None:
        print("Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, **others: real(path, options))


@pytest.mark.skipif(HAS_CUDA, reason="this machine has the provider")
def test_a_gpu_that_does_not_start_is_one_error_and_nothing_on_standard_output(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend_cuda(monkeypatch)
    with pytest.raises(MissingPartError, match=r"could not start CUDAExecutionProvider \(.+\): check the driver"):
        select_backend("onnxruntime-cuda", bundle)
    assert capfd.readouterr() == ("", "")
    assert select_backend("auto", bundle).engine.name == "onnxruntime"
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rsrefseg: auto does not use onnxruntime-cuda: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(HAS_CUDA, reason="this machine has the provider")
def test_a_library_that_the_provider_lacks_is_named(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cuda(monkeypatch)
    (tmp_path / "capi").mkdir()
    # The loader of the system names what it cannot load: here this file itself, on a machine with a GPU a library.
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingPartError, match=r"libonnxruntime_providers_cuda.so cannot be loaded\)"):
        OnnxRuntimeCudaEngine(bundle)


def test_a_session_left_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "why_not_started", lambda device_id: None)
    engine = OnnxRuntimeCudaEngine(bundle, threads=1)
    assert engine.name == "onnxruntime-cuda"
    with pytest.raises(MissingPartError, match=r"\(it offered CPUExecutionProvider\)"):
        engine.load()
    assert engine.load_ms == {}


@pytest.mark.parametrize(("kind", "expected"), [("RuntimeError", MissingPartError), ("InvalidGraph", BundleError)])
def test_a_gpu_that_fails_is_not_blamed_on_the_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str, expected: type[RSRefSegError]
) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "why_not_started", lambda device_id: None)

    def fail(*_: Any, **options: Any) -> None:
        assert options["enable_fallback"] == 0, "with it ONNX Runtime prints and continues on the CPU"
        assert options["providers"] == [("CUDAExecutionProvider", cuda_options(0) | {"enable_cuda_graph": "1"})]
        assert cuda_options(0)["use_tf32"] == "0"  # by default float32 products have three digits
        raise type(kind, (Exception,), {})("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(expected, match=r"sam_decoder\.onnx.*CUDA failure 2"):
        OnnxRuntimeCudaEngine(bundle).load(Stage.SAM_DECODER)


# Where the nodes are

knows_nodes = pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="ONNX Runtime reports where its nodes are from 1.24 on",
)
has_idle_provider = pytest.mark.skipif(
    NO_NODE not in onnxruntime.get_available_providers(), reason="this onnxruntime has no provider that takes no node"
)


def test_the_provider_is_named_alone_where_it_runs_every_node(bundle: Bundle) -> None:
    with bound(bundle) as engine:
        assert {engine.provider_of(stage) for stage in Stage} == {"CPUExecutionProvider"}
    assert node_placement(object(), "CUDAExecutionProvider") == (None, "CUDAExecutionProvider")


@knows_nodes
@has_idle_provider
def test_nodes_left_to_the_cpu_are_named(bundle: Bundle) -> None:
    with bound(bundle) as engine:
        engine.load(Stage.SIGLIP_VISION)
        nodes, words = node_placement(engine._models[Stage.SIGLIP_VISION].session, NO_NODE)
    assert nodes == 0
    assert words.startswith(f"{NO_NODE}; on the CPU: 1 AveragePool, 1 MatMul, 1 Reshape, 1 Transpose, 2 nodes that")


@knows_nodes
@has_idle_provider
def test_a_provider_that_takes_no_node_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnxruntime_engine.PROVIDERS, "cpu", NO_NODE)
    with pytest.raises(MissingPartError, match=f"{NO_NODE} takes no node of stage 'sam_decoder'"):
        bound(bundle).load(Stage.SAM_DECODER)


"The engine that keeps tensors on a GPU, run as a whole on the CPU: ONNX Runtime binds host memory in the same way."
