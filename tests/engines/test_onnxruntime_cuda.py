"""The engine that keeps tensors on a GPU, run as a whole on the CPU: ONNX Runtime binds host memory in the same way."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest

from rsrefseg.engines.backends import select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.errors import BadInputError, BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime import cuda as onnxruntime_cuda
from rsrefseg.engines.onnxruntime import device_session
from rsrefseg.engines.onnxruntime import engine as onnxruntime_engine
from rsrefseg.engines.onnxruntime.cuda import RECORDED, OnnxRuntimeCudaEngine, cuda_options, node_placement
from rsrefseg.engines.onnxruntime.device_session import DeviceSession, PendingTensor
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.export.export import export_run
from rsrefseg.export.settings import ExportSettings, Target
from tests.support.engines import asked, random_image
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, make_dynamic

NO_NODE = "AzureExecutionProvider"  # part of the CPU package; it takes none of these nodes
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this machine has the provider"
)


def bound(bundle: Bundle) -> OnnxRuntimeCudaEngine:
    return OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu")


def recordings(engine: OnnxRuntimeCudaEngine) -> dict[Stage, int]:
    return {stage: len(model.recordings) for stage, model in engine._models.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, name, strict=True)


def test_dynamic_int8_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--target tensorrt"):
        bound(Bundle.open(make_dynamic(folder, tmp_path / "bundle")))


def test_the_image_is_uploaded_once_and_only_logits_are_downloaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, fetched, value = [], [], onnxruntime.OrtValue
    upload, fetch = value.update_inplace, value.numpy
    monkeypatch.setattr(value, "update_inplace", lambda to, array: uploads.append(array.shape) or upload(to, array))
    monkeypatch.setattr(value, "numpy", lambda source: fetched.append(tuple(source.shape())) or fetch(source))
    image = random_image(bundle)
    with bound(bundle) as engine:
        tokens = bundle.tokenizer().encode(PHRASES)
        texts = engine.encode_text(tokens.input_ids, tokens.token_mask)
        fetched.clear()  # what is made of phrases is kept on the host
        encoded = engine.encode_image(image)
        assert all(isinstance(tensor, PendingTensor) for tensor in encoded.values())
        logits = engine.predict(encoded, texts)
    assert uploads == [image.shape]
    assert fetched == [logits.shape]


def test_first_and_replayed_runs_give_the_same_bits_as_arrays(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    samples = load_reference(bundle)
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for turn in range(4):  # numbers of phrases alternate, so that each recording follows another's
            for number in (1, 3, 2):
                sample = samples[turn % len(samples)]
                phrases, image = (sample.phrases * 3)[turn : turn + number], sample.tensors["image"]
                assert_same(asked(engine, image, phrases), asked(plain, image, phrases))
        assert recordings(engine) == dict.fromkeys(RECORDED, 3) | {Stage.SIGLIP_VISION: 1, Stage.SAM_ENCODER: 0}
        assert not any(model.refusal for model in engine._models.values())


def test_an_encoder_of_attention_nodes_is_replayed_with_the_same_bits(exported: Exported, tmp_path: Path) -> None:
    settings = ExportSettings(target=Target.ONNXRUNTIME_CUDA)
    bundle = Bundle.open(Path(export_run(exported.run, tmp_path / "bundle", settings).bundle))
    sample = load_reference(bundle)[0]
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for _ in range(4):
            arguments = sample.tensors["image"], sample.phrases
            assert_same(asked(engine, *arguments), asked(plain, *arguments))
        assert recordings(engine) == dict.fromkeys(Stage, 1)


def test_features_and_answers_outlive_the_next_replay_and_the_engine(bundle: Bundle) -> None:
    """A recording uses the same memory each time. That must not be the caller's, where both are host memory."""
    images = [random_image(bundle, seed) for seed in range(5)]
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        tokens = bundle.tokenizer().encode(PHRASES)
        texts = engine.encode_text(tokens.input_ids, tokens.token_mask)
        features = [engine.encode_image(image) for image in images]
        assert recordings(engine)[Stage.SIGLIP_VISION] == 1  # the last three are of the recording
        logits = [engine.predict(feature, texts) for feature in features]
        wanted = [asked(plain, random_image(bundle, seed), PHRASES) for seed in range(5)]
    for seed, (feature, answer) in enumerate(zip(features, logits, strict=True)):
        assert_same(engine.to_host(feature) | {"mask_logits": answer}, wanted[seed])
        assert np.array_equal(images[seed], random_image(bundle, seed))


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
                pool.submit(asked, engine, random_image(bundle, seed), PHRASES).result()
        assert recordings(engine)[Stage.SIGLIP_VISION] == 1
    threads = {stage: {thread for other, _, thread in events if other is stage} for stage in Stage}
    vision, text, others = (
        threads.pop(Stage.SIGLIP_VISION),
        threads.pop(Stage.SIGLIP_TEXT),
        set.union(*threads.values()),
    )
    assert len(vision) == len(text) == len(others) == 1
    assert len(vision | text | others) == 3
    encoders = [(stage, event) for stage, event, _ in events if stage in IMAGE_STAGES]
    assert encoders == [(stage, event) for stage in IMAGE_STAGES for event in ("begins", "ends")] * 3


def test_text_is_encoded_while_both_image_encoders_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing encoder is reported by the call that uses its output, and the next image is not affected."""
    run, together, image = OnnxRuntimeCudaEngine._run_session, threading.Barrier(3), random_image(bundle)

    def met(engine: OnnxRuntimeCudaEngine, stage: Stage, model: DeviceSession, feeds: Mapping[str, Any]) -> Any:
        if stage in (*IMAGE_STAGES, Stage.SIGLIP_TEXT):
            together.wait(timeout=60)
        return run(engine, stage, model, feeds)

    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        wanted = asked(plain, image, PHRASES)
        for _ in range(3):  # until all are recorded
            asked(engine, image, PHRASES)
        monkeypatch.setattr(OnnxRuntimeCudaEngine, "_run_session", met)
        assert_same(asked(engine, image, PHRASES), wanted)
        failing = Mock(**{"run.side_effect": RuntimeError("out of memory")}, may_record=lambda feeds: False)
        with monkeypatch.context() as broken:
            broken.setitem(engine._models, Stage.SAM_ENCODER, failing)
            with pytest.raises(RSRefSegError, match="'sam_encoder' failed in onnxruntime: out of memory"):
                asked(engine, image, PHRASES)
        assert_same(asked(engine, image, PHRASES), wanted)


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
        for count in (1, 2) * 4:
            engine.encode_text(tokens.input_ids[:count], tokens.token_mask[:count])
        assert recordings(engine)[Stage.SIGLIP_TEXT] == 1


def test_a_run_that_cannot_be_recorded_continues_without_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = RuntimeError("operation not permitted\nwhen stream is capturing")
    tokens = bundle.tokenizer().encode(PHRASES[:1])
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        wanted = plain.run(Stage.SIGLIP_TEXT, {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask})
        monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", Mock(side_effect=refusal))
        for _ in range(4):
            (found,) = engine.encode_text(tokens.input_ids, tokens.token_mask)
            assert np.array_equal(found["word_features"], wanted["word_features"][0])
        assert engine.provider_of(Stage.SIGLIP_TEXT).endswith(
            "; not replayed: operation not permitted when stream is capturing"
        )


GRAPH, NO_GRAPH = cuda_options(0) | {"enable_cuda_graph": "1"}, cuda_options(0)


@pytest.mark.parametrize(
    ("error", "reason", "tried", "expected"),
    [
        ("RuntimeError", "This session cannot use the graph capture feature", [GRAPH, NO_GRAPH], MissingPartError),
        ("RuntimeError", "CUDA failure 2: out of memory ; GPU=0", [GRAPH], MissingPartError),
        ("InvalidGraph", "CUDA failure 2: out of memory ; GPU=0", [GRAPH], BundleError),
    ],
)
def test_a_graph_that_cannot_be_recorded_is_loaded_without_and_a_gpu_that_fails_is_not_the_bundles_fault(
    bundle: Bundle, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch,
    error: str, reason: str, tried: list[dict[str, str]], expected: type[RSRefSegError],
) -> None:  # fmt: skip
    session = Mock(side_effect=type(error, (Exception,), {})(reason))
    monkeypatch.setattr(onnxruntime_cuda, "cuda_unavailable_reason", lambda device_id: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(expected, match=rf"sam_decoder\.onnx.*{reason[:14]}"):
        OnnxRuntimeCudaEngine(bundle).load(Stage.SAM_DECODER)
    found = [call.kwargs for call in session.call_args_list]
    assert [one["providers"] for one in found] == [[("CUDAExecutionProvider", options)] for options in tried]
    assert all(one["enable_fallback"] == 0 for one in found), "with it ONNX Runtime continues on the CPU"
    assert cuda_options(0)["use_tf32"] == "0"  # by default float32 products have three digits


def test_a_run_that_fails_is_one_line_in_cudas_words(bundle: Bundle) -> None:
    error = RuntimeError("/src/cuda_call.cc:154 CudaCall(ERRTYPE)\nCUDA failure 2: out of memory ; GPU=0 ; line=9")
    engine = bound(bundle)
    engine.load()
    engine._models[Stage.SIGLIP_VISION].session = Mock(**{"io_binding.side_effect": error})
    with pytest.raises(RSRefSegError) as refusal:
        engine.encode_image(random_image(bundle))
    assert str(refusal.value).endswith("'siglip_vision' failed in onnxruntime: CUDA failure 2: out of memory")


@pytest.fixture
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of onnxruntime-gpu where nothing of CUDA is installed: it prints, logs, and continues on the CPU."""
    real = onnxruntime.InferenceSession
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, **others: real(path, options))


@without_cuda
def test_a_package_without_the_provider_is_reported_with_a_hint() -> None:
    hint = "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'rsrefseg[cuda]'"
    assert f"has no CUDAExecutionProvider: {hint}" in str(onnxruntime_cuda.cuda_unavailable_reason())


@without_cuda
def test_a_gpu_that_does_not_start_is_one_error_and_nothing_on_standard_output(
    bundle: Bundle, pretend_cuda: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingPartError, match=r"could not start CUDAExecutionProvider \(.+\): check the driver"):
        select_backend("onnxruntime-cuda", bundle)
    assert capfd.readouterr() == ("", "")
    assert select_backend("auto", bundle).engine.name == "onnxruntime"
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rsrefseg: auto does not use onnxruntime-cuda: ")


@without_cuda
def test_a_library_that_the_provider_lacks_is_named(
    tmp_path: Path, bundle: Bundle, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capi").mkdir()
    # The loader of the system names what it cannot load: here this file itself, on a machine with a GPU a library.
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingPartError, match=r"libonnxruntime_providers_cuda.so cannot be loaded\)"):
        OnnxRuntimeCudaEngine(bundle)


def test_a_session_left_to_the_cpu_is_refused(
    bundle: Bundle, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "cuda_unavailable_reason", lambda device_id: None)
    engine = OnnxRuntimeCudaEngine(bundle, threads=1)
    with pytest.raises(MissingPartError, match=r"\(it offered CPUExecutionProvider\)"):
        engine.load()
    assert engine.load_ms == {}


def test_the_provider_is_named_alone_where_it_runs_every_node(bundle: Bundle) -> None:
    with bound(bundle) as engine:
        assert {engine.provider_of(stage) for stage in Stage} == {"CPUExecutionProvider"}
    assert node_placement(object(), "CUDAExecutionProvider") == (None, "CUDAExecutionProvider")


@pytest.mark.skipif(
    NO_NODE not in onnxruntime.get_available_providers()
    or not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="this onnxruntime has no provider that takes no node, or does not report nodes (before 1.24)",
)
def test_nodes_left_to_the_cpu_are_named_and_a_provider_without_nodes_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bound(bundle) as engine:
        engine.load(Stage.SIGLIP_VISION)
        nodes, words = node_placement(engine._models[Stage.SIGLIP_VISION].session, NO_NODE)
    assert nodes == 0
    assert words.startswith(f"{NO_NODE}; on the CPU: 1 AveragePool, 1 MatMul, 1 Reshape, 1 Transpose, 2 nodes that")
    monkeypatch.setitem(onnxruntime_engine.PROVIDERS, "cpu", NO_NODE)
    with pytest.raises(MissingPartError, match=f"{NO_NODE} runs no node of stage 'sam_decoder'"):
        bound(bundle).load(Stage.SAM_DECODER)
