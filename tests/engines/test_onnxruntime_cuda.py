"""The engine that keeps tensors on a GPU, run as a whole on the CPU: ONNX Runtime binds host memory in the same way."""

import threading
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
from rsrefseg.engines.engine import IMAGE_STAGES, Engine
from rsrefseg.engines.errors import BadInputError, BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime import cuda as onnxruntime_cuda
from rsrefseg.engines.onnxruntime import engine as onnxruntime_engine
from rsrefseg.engines.onnxruntime import replay as onnxruntime_replay
from rsrefseg.engines.onnxruntime.cuda import (
    REPLAYED,
    BoundTensor,
    OnnxRuntimeCudaEngine,
    cuda_options,
    why_not_started,
)
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.onnxruntime.placement import RECORD_KEY, placement_of
from rsrefseg.engines.segmenter import Segmenter
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, make_bundle

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


def picture(bundle: Bundle, seed: int = 0) -> np.ndarray:
    side = bundle.manifest.geometry.image_size
    return np.random.default_rng(seed).integers(0, 256, (1, 3, side, side), np.uint8)


def asked(engine: Engine, image: np.ndarray, phrases: tuple[str, ...]) -> dict[str, np.ndarray]:
    """All an engine makes of a picture and phrases, in host memory."""
    tokens = engine.bundle.tokenizer().encode(phrases)
    encoded, texts = engine.encode_image(image), engine.encode_text(tokens.input_ids, tokens.token_mask)
    logits = engine.answer(encoded, texts)
    hosted = [engine.to_host(text) for text in texts]
    stacked = {name: np.stack([text[name] for text in hosted]) for name in hosted[0]}
    return {**engine.to_host(encoded), **stacked, "mask_logits": logits}


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


def test_a_segmenter_cannot_tell_it_from_the_plain_engine(bundle: Bundle) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
    with Segmenter(bundle, bound(bundle)) as ours, Segmenter(bundle, OnnxRuntimeEngine(bundle, threads=1)) as plain:
        for phrases in (PHRASES[:1], PHRASES, PHRASES[1:3]):
            for found, wanted in zip(ours.segment(pixels, phrases), plain.segment(pixels, phrases), strict=True):
                assert np.array_equal(found.mask_logits, wanted.mask_logits)


def test_the_picture_is_uploaded_once_and_only_logits_come_back(
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


def test_what_was_kept_outlives_the_next_picture_and_the_engine(bundle: Bundle) -> None:
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        first = engine.encode_image(picture(bundle, 1))
        engine.encode_image(picture(bundle, 2))
        wanted = plain.encode_image(picture(bundle, 1))
    assert_same(engine.to_host(first), wanted)


def test_the_next_picture_does_not_overwrite_the_one_before_it(bundle: Bundle) -> None:
    """The device's memory is used again, and must not be the caller's where both are host memory."""
    first = picture(bundle, 1)
    kept = first.copy()
    with bound(bundle) as engine:
        engine.encode_image(first)
        engine.encode_image(picture(bundle, 2))
    assert np.array_equal(first, kept)


def test_what_does_not_fit_never_reaches_the_runtime(bundle: Bundle) -> None:
    engine = bound(bundle)
    with pytest.raises(BadInputError, match="stage 'siglip_vision': tensor 'image' must be uint8"):
        engine.encode_image(picture(bundle)[:, :, :8])
    assert engine.load_ms == {}
    tokens = bundle.tokenizer().encode(PHRASES[:1])
    (text,) = engine.encode_text(tokens.input_ids, tokens.token_mask)
    encoded = engine.encode_image(picture(bundle))
    with pytest.raises(BadInputError, match="stage 'attn_prompter': tensor 'word_features' must be"):
        engine.answer(encoded, [text] * 33)
    with pytest.raises(BadInputError, match="stage 'attn_prompter': tensor 'clip_features' must be"):
        engine.answer(encoded | {"clip_features": encoded["image_embedding"]}, [text])


# Replays


def test_what_is_asked_often_is_replayed_with_the_same_bits(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    sample = load_reference(bundle)[0]
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for turn in range(4):  # numbers of phrases take turns, so that each recording follows another's
            for number in (1, 3, 2):
                phrases = (sample.phrases * 3)[turn : turn + number]
                assert_same(
                    asked(engine, sample.tensors["image"], phrases), asked(plain, sample.tensors["image"], phrases)
                )
        counts = {stage: replays.count for stage, replays in engine._replays.items()}
        assert counts == dict.fromkeys(REPLAYED, 3) | {Stage.SIGLIP_VISION: 1}
        assert not any(replays.refusal for replays in engine._replays.values())


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


def test_features_of_a_replayed_encoder_outlive_the_next_picture(bundle: Bundle) -> None:
    with bound(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for seed in range(3):
            engine.encode_image(picture(bundle, seed))
        assert engine._replays[Stage.SIGLIP_VISION].count == 1
        first, second = (engine.encode_image(picture(bundle, seed)) for seed in (7, 8))
        assert_same(engine.to_host(first), plain.encode_image(picture(bundle, 7)))
        assert_same(engine.to_host(second), plain.encode_image(picture(bundle, 8)))


def test_every_stage_runs_in_one_thread_whoever_calls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps handles and recordings for every thread apart: a new thread begins from nothing."""
    threads: dict[Stage, set[int]] = {stage: set() for stage in Stage}
    run = OnnxRuntimeCudaEngine._replay_or_run

    def noted(engine: OnnxRuntimeCudaEngine, stage: Stage, feeds: Any) -> Any:
        threads[stage].add(threading.get_ident())
        return run(engine, stage, feeds)

    monkeypatch.setattr(OnnxRuntimeCudaEngine, "_replay_or_run", noted)
    with bound(bundle) as engine:
        for seed in range(4):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asked, engine, picture(bundle, seed), PHRASES).result()
    (vision,) = threads.pop(Stage.SIGLIP_VISION)
    assert len(set.union(*threads.values())) == 1
    assert vision not in set.union(*threads.values())
    assert threading.get_ident() != vision


def test_no_encoder_runs_beside_one_that_is_recorded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[Stage, str]] = []
    run = OnnxRuntimeCudaEngine._replay_or_run

    def noted(engine: OnnxRuntimeCudaEngine, stage: Stage, feeds: Any) -> Any:
        events.append((stage, "begins"))
        made = run(engine, stage, feeds)
        events.append((stage, "ends"))
        return made

    monkeypatch.setattr(OnnxRuntimeCudaEngine, "_replay_or_run", noted)
    with bound(bundle) as engine:
        for seed in range(3):
            engine.encode_image(picture(bundle, seed))
        assert engine._replays[Stage.SIGLIP_VISION].count == 1
    assert events == [(stage, event) for stage in IMAGE_STAGES for event in ("begins", "ends")] * 3


def test_an_engine_that_was_closed_can_be_used_again(bundle: Bundle) -> None:
    engine = bound(bundle)
    before = asked(engine, picture(bundle), PHRASES)
    engine.close()
    assert_same(asked(engine, picture(bundle), PHRASES), before)
    engine.close()


@pytest.mark.parametrize("stage", REPLAYED)
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


def test_only_so_many_numbers_of_phrases_are_recorded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_replay, "_MOST_RECORDINGS", 1)
    tokens = bundle.tokenizer().encode(PHRASES)
    with bound(bundle) as engine:
        for count in (1, 2):
            for _ in range(4):
                engine.encode_text(tokens.input_ids[:count], tokens.token_mask[:count])
        assert engine._replays[Stage.SIGLIP_TEXT].count == 1


def test_a_run_that_cannot_be_recorded_goes_on_without_and_says_so(
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
    told_to_have_cuda(monkeypatch)
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
    engine._sessions[Stage.SIGLIP_VISION] = FailingSession()
    with pytest.raises(RSRefSegError) as refusal:
        engine.encode_image(picture(bundle))
    assert str(refusal.value).endswith("'siglip_vision' failed in onnxruntime: CUDA failure 2: out of memory")


# The provider


def test_float32_means_float32_on_the_gpu() -> None:
    # ONNX Runtime's own default computes float32 products in TF32, with three digits.
    assert cuda_options(1) == {
        "device_id": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


@pytest.mark.skipif(HAS_CUDA, reason="this machine has the provider")
def test_a_package_without_the_provider_is_told_with_the_way_out() -> None:
    reason = why_not_started()
    assert reason is not None
    assert "has no CUDAExecutionProvider: pip uninstall onnxruntime, then pip install 'rsrefseg[cuda]'" in reason


def told_to_have_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of onnxruntime-gpu where nothing of CUDA is installed: it prints, logs, and goes on with the CPU."""
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
    told_to_have_cuda(monkeypatch)
    with pytest.raises(MissingPartError, match=r"could not start CUDAExecutionProvider \(.+\): check the driver"):
        select_backend("onnxruntime-cuda", bundle)
    assert select_backend("auto", bundle).engine.name == "onnxruntime"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(HAS_CUDA, reason="this machine has the provider")
def test_a_library_that_the_provider_lacks_is_named(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_to_have_cuda(monkeypatch)
    (tmp_path / "capi").mkdir()
    # The loader of the system names what it cannot load: here this file itself, on a machine with a GPU a library.
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingPartError, match=r"libonnxruntime_providers_cuda.so cannot be loaded\)"):
        OnnxRuntimeCudaEngine(bundle)


def test_a_session_left_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    told_to_have_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "why_not_started", lambda device_id: None)
    engine = OnnxRuntimeCudaEngine(bundle, threads=1)
    assert engine.name == "onnxruntime-cuda"
    with pytest.raises(MissingPartError, match=r"\(it offered CPUExecutionProvider\)"):
        engine.load()
    assert engine.load_ms == {}


@pytest.mark.parametrize(("kind", "expected"), [("RuntimeError", MissingPartError), ("InvalidGraph", BundleError)])
def test_auto_goes_on_where_the_gpu_fails_and_stops_where_the_bundle_is_wrong(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str, expected: type[RSRefSegError]
) -> None:
    told_to_have_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "why_not_started", lambda device_id: None)

    def fail(*_: Any, **options: Any) -> None:
        assert options["enable_fallback"] == 0, "with it ONNX Runtime prints and goes on with the CPU"
        assert options["providers"] == [("CUDAExecutionProvider", cuda_options(0) | {"enable_cuda_graph": "1"})]
        raise type(kind, (Exception,), {})("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(expected, match=r"sam_decoder\.onnx.*CUDA failure 2"):
        OnnxRuntimeCudaEngine(bundle).load(Stage.SAM_DECODER)


# Where the nodes are


def session_on(path: Path, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(RECORD_KEY, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


knows_nodes = pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="ONNX Runtime tells where its nodes are from 1.24 on",
)
has_idle_provider = pytest.mark.skipif(
    NO_NODE not in onnxruntime.get_available_providers(), reason="this onnxruntime has no provider that takes no node"
)


@knows_nodes
def test_a_provider_that_runs_every_node_is_named_alone(bundle: Bundle) -> None:
    with bound(bundle) as engine:
        assert {engine.provider_of(stage) for stage in Stage} == {"CPUExecutionProvider"}


@knows_nodes
@has_idle_provider
def test_nodes_left_to_the_cpu_are_told(folder: Path) -> None:
    placement = placement_of(session_on(folder / "siglip_vision.onnx", NO_NODE), NO_NODE)
    assert placement is not None
    assert placement.own == 0
    assert placement.elsewhere == {"AveragePool": 1, "MatMul": 1, "Reshape": 1, "Transpose": 1}
    assert str(placement) == (
        f"{NO_NODE}; on the CPU: 1 AveragePool, 1 MatMul, 1 Reshape, 1 Transpose, 2 nodes that compute sizes"
    )


@knows_nodes
@has_idle_provider
def test_a_provider_that_takes_no_node_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnxruntime_engine.PROVIDERS, "cpu", NO_NODE)
    with pytest.raises(MissingPartError, match=f"{NO_NODE} takes no node of stage 'sam_decoder'"):
        bound(bundle).load(Stage.SAM_DECODER)


def test_an_older_onnxruntime_names_the_provider_only() -> None:
    assert placement_of(object(), "CUDAExecutionProvider") is None
