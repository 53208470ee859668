"""A bundle on TensorRT answers as it should, stays on the GPU and leaves nothing behind: on doubles, not on a GPU."""

import gc
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.engine import Arrays, Engine
from rsrefseg.engines.errors import BadInputError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.segmenter import EncodedImage, Segmenter
from rsrefseg.engines.tensorrt.engine import TensorRTEngine
from tests.support.commands import run_here
from tests.support.doubles.cuda_values import cudaError_t, cudaMemcpyKind
from tests.support.doubles.tensorrt_double import VERSIONS, State, doubled
from tests.support.exported import Exported
from tests.support.made_bundle import COLOURS, PHRASES
from tests.support.places import Capsys


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, cache: Path) -> Iterator[State]:
    with doubled(request.param) as state:
        yield state


def picture(colour: str = "red") -> np.ndarray:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = [255 * part for part in COLOURS[colour]]
    return pixels


def logits(segmenter: Segmenter, image: np.ndarray | EncodedImage, phrases: tuple[str, ...]) -> np.ndarray:
    return np.stack([answer.mask_logits for answer in segmenter.segment(image, phrases)])


def assert_right(found: np.ndarray, bundle: Bundle, colour: str, phrases: tuple[str, ...]) -> None:
    with Segmenter(bundle, OnnxRuntimeEngine(bundle, threads=1)) as segmenter:
        np.testing.assert_array_equal(found, logits(segmenter, picture(colour), phrases))


def test_a_real_export_holds_parity_through_build_cache_and_run(
    trt: State, exported: Exported, tmp_path: Path, capsys: Capsys
) -> None:
    shutil.copytree(exported.bundle, tmp_path / "exported")
    built = run_here(capsys, "build", "--bundle", tmp_path / "exported", "--json")
    assert built.code == 0, built.err
    assert [stage["built"] for stage in json.loads(built.out)["stages"]] == [True] * 5
    parity = run_here(capsys, "parity", "--bundle", tmp_path / "exported", "--backend", "tensorrt", "--json")
    assert parity.code == 0, parity.err
    report = json.loads(parity.out)
    assert report["holds"] is True
    assert report["backend"] == "tensorrt"
    assert all(trt.version in provider for provider in report["providers"].values())
    assert len(trt.built) == 5, "parity built nothing again"
    assert not any(trt.cuda.held.values())


def test_answers_are_those_of_onnx_runtime_at_first_and_as_a_cuda_graph(trt: State, bundle: Bundle) -> None:
    with Segmenter(bundle, TensorRTEngine(bundle)) as segmenter:
        for turn in range(4):
            for phrases in (PHRASES[:1], PHRASES[:3]):
                colour = "red" if turn % 2 else "green"
                assert_right(logits(segmenter, picture(colour), phrases), bundle, colour, phrases)
    assert trt.cuda.launched == 4, "the third and the fourth turn of both numbers of phrases"


def test_features_of_several_pictures_and_phrases_can_be_held_and_combined(trt: State, bundle: Bundle) -> None:
    with Segmenter(bundle, TensorRTEngine(bundle)) as segmenter:
        encoded = {colour: segmenter.encode_image(picture(colour)) for colour in COLOURS}
        for _ in range(3):
            for colour, features in encoded.items():
                assert_right(logits(segmenter, features, PHRASES[:2]), bundle, colour, PHRASES[:2])


def test_features_come_to_the_host_on_demand(trt: State, bundle: Bundle) -> None:
    def features(engine: Engine) -> list[Arrays]:
        tokens, image = bundle.tokenizer().encode(PHRASES[:2]), np.full((1, 3, 32, 32), 77, np.uint8)
        made = [engine.encode_image(image), *engine.encode_text(tokens.input_ids, tokens.token_mask)]
        return [engine.to_host(tensors) for tensors in made]

    with TensorRTEngine(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        np.testing.assert_equal(features(engine), features(plain))


def test_a_picture_crosses_the_bus_once_and_nothing_waits_before_the_answer(
    trt: State, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segmenter(bundle, TensorRTEngine(bundle)) as segmenter:
        segmenter.segment(picture(), PHRASES[:1])
        calls: list[tuple[Any, ...]] = []
        runtime = sys.modules["cuda.bindings.runtime"]
        for name in ("cudaMemcpyAsync", "cudaStreamSynchronize"):
            real = getattr(runtime, name)
            monkeypatch.setattr(runtime, name, lambda *a, real=real: (calls.append(a), real(*a))[1])
        segmenter.segment(picture("blue"), PHRASES[2:3])
    *copies, answer, wait = calls[:-2]  # closing waits for both streams
    sizes = {kind: sorted(call[2] for call in copies if call[3] == kind) for kind in cudaMemcpyKind}
    assert sizes[cudaMemcpyKind.cudaMemcpyHostToDevice] == [64, 512, 3 * 32 * 32], "mask, tokens and picture"
    assert sizes[cudaMemcpyKind.cudaMemcpyDeviceToHost] == [], "no feature came back"
    assert answer[3] == cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert len(wait) == 1


def test_memory_is_used_again(trt: State, bundle: Bundle) -> None:
    with Segmenter(bundle, TensorRTEngine(bundle), cached_phrases=1) as segmenter:
        for _ in range(3):
            segmenter.segment(picture(), PHRASES[:2])
        gc.collect()
        before = trt.cuda.held
        for _ in range(5):
            segmenter.segment(picture("blue"), PHRASES[1:3])
        assert trt.cuda.held == before


def test_threads_may_share_it(trt: State, bundle: Bundle) -> None:
    colours = [*COLOURS] * 5
    with Segmenter(bundle, TensorRTEngine(bundle)) as segmenter, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda colour: logits(segmenter, picture(colour), PHRASES[:2]), colours))
    for colour, answer in zip(colours, answers, strict=True):
        assert_right(answer, bundle, colour, PHRASES[:2])


def test_every_number_of_phrases_has_its_graph(trt: State, bundle: Bundle) -> None:
    with Segmenter(bundle, TensorRTEngine(bundle)) as segmenter:
        for count in (*range(1, 13), 1, 12):
            phrases = tuple(PHRASES[index % 3] for index in range(count))
            for _ in range(3):
                assert_right(logits(segmenter, picture(), phrases), bundle, "red", phrases)
    assert trt.cuda.launched == 12 + 2 * 3, "the third turn of each, and all later ones"


def test_without_a_cuda_graph_it_goes_on_and_says_so(
    trt: State, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    trt.cuda.faults["cudaGraphInstantiate"] = cudaError_t.cudaErrorUnknown
    with caplog.at_level(logging.WARNING), Segmenter(bundle, TensorRTEngine(bundle)) as segmenter:
        for _ in range(4):
            found = logits(segmenter, picture(), PHRASES[:2])
    assert_right(found, bundle, "red", PHRASES[:2])
    (line,) = caplog.messages
    assert "run without a CUDA graph for 2 phrases" in line
    assert "cudaGraphInstantiate" in line
    assert trt.cuda.launched == 0


def test_closed_it_frees_everything_and_opens_again(trt: State, bundle: Bundle) -> None:
    engine = TensorRTEngine(bundle)
    segmenter = Segmenter(bundle, engine)
    encoded = segmenter.encode_image(picture())
    first = logits(segmenter, picture(), PHRASES[:2])
    segmenter.close()
    assert not any(trt.cuda.held.values())
    assert len(trt.alive) == 0, "at once, not when the garbage collector comes by"
    with pytest.raises(RSRefSegError, match="freed when their engine was closed"):
        segmenter.segment(encoded, PHRASES[:1])
    np.testing.assert_array_equal(logits(segmenter, picture(), PHRASES[:2]), first)
    segmenter.close()
    assert not any(trt.cuda.held.values())


def test_wrong_tokens_are_refused_before_the_gpu(trt: State, bundle: Bundle) -> None:
    with TensorRTEngine(bundle) as engine, pytest.raises(BadInputError, match="input_ids"):
        engine.encode_text(np.zeros((33, 64), np.int64), np.zeros((33, 64), np.bool_))


def test_auto_takes_it_where_engines_are_current_and_never_builds(trt: State, bundle: Bundle) -> None:
    before = select_backend(Backend.AUTO, bundle, threads=1)
    assert before.engine.name == "onnxruntime"
    assert "not tensorrt: no TensorRT engine of siglip_vision for this machine (it has no engine yet)" in before.reason
    assert trt.built == []
    TensorRTEngine(bundle).close()
    with select_backend(Backend.AUTO, bundle).engine as engine:
        assert engine.name == "tensorrt"


@pytest.mark.parametrize(("hidden", "package"), [("tensorrt", "tensorrt"), ("cuda", "cuda-python")])
def test_a_missing_package_is_named(trt: State, bundle: Bundle, hidden: str, package: str) -> None:
    with pytest.MonkeyPatch.context() as patch:  # undone before the double goes, or it would come back
        for name in [name for name in sys.modules if name.split(".")[0] == hidden]:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPartError, match=rf"^{package} is not installed: .*rsrefseg\[tensorrt\]"):
            TensorRTEngine(bundle)


@pytest.mark.parametrize(
    ("status", "driver", "message"),
    [
        (cudaError_t.cudaSuccess, 0, "no NVIDIA driver is installed"),
        (cudaError_t.cudaErrorNoDevice, 13000, "no NVIDIA GPU is visible"),
        (cudaError_t.cudaErrorInsufficientDriver, 12040, "supports CUDA 12.4, which is too old"),
    ],
)
def test_a_missing_device_or_driver_is_named(
    trt: State, bundle: Bundle, status: cudaError_t, driver: int, message: str
) -> None:
    trt.cuda.driver = driver
    trt.cuda.faults["cudaGetDeviceCount"] = status
    with pytest.raises(MissingPartError, match=message):
        TensorRTEngine(bundle)


def test_a_tensorrt_too_old_is_named(bundle: Bundle) -> None:
    with doubled("10.0.1.6"), pytest.raises(MissingPartError, match=r"10\.0\.1\.6 is too old, 10\.3 is needed"):
        TensorRTEngine(bundle)


def test_doctor_tells_versions_and_gpu(trt: State, capsys: Capsys) -> None:
    text = run_here(capsys, "doctor").out
    (line,) = [line for line in text.splitlines() if "TensorRT engines" in line]
    assert line.startswith("yes")
    assert f"TensorRT {trt.version}, Double of a GPU (8.7), CUDA 13.0" in line
