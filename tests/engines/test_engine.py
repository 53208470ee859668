"""What every engine has in common: loading, refusing, failing and closing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import IMAGE_STAGES, Engine
from rsrefseg.engines.errors import BadInputError, BundleError, RSRefSegError
from rsrefseg.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from tests.support.engines import asked, random_image
from tests.support.made_bundle import PHRASES, changed_graph

Make = Callable[[Bundle], Engine]
# OpenVINO 2026.4 with one thread does not report that a run fails.
MAKERS: dict[str, Make] = {
    "onnxruntime": lambda bundle: OnnxRuntimeEngine(bundle, threads=1),
    "device": lambda bundle: OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu"),
    "openvino": lambda bundle: OpenVinoEngine(bundle, threads=2, fp32=True),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return MAKERS[request.param]


class Loads(OnnxRuntimeEngine):
    """Notes the stages it loads; those of a parallel load wait for each other."""

    def __init__(self, bundle: Bundle, parallel: int) -> None:
        super().__init__(bundle, threads=1)
        self.loaded: list[Stage] = []
        self._barrier = threading.Barrier(parallel)

    def _load(self, stage: Stage) -> object:
        self._barrier.wait(timeout=20)
        self.loaded.append(stage)
        return super()._load(stage)


class LoadsInTurn(Loads):
    loads_together = False


@pytest.mark.parametrize(("kind", "parallel"), [(Loads, len(Stage)), (LoadsInTurn, 1)])
def test_all_stages_load_once(bundle: Bundle, kind: type[Loads], parallel: int) -> None:
    with kind(bundle, parallel) as engine, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: engine.load(), range(4)))
        assert sorted(engine.loaded) == sorted(Stage)
        assert set(engine.load_ms) == set(Stage)
        assert all(milliseconds > 0 for milliseconds in engine.load_ms.values())
    assert engine.load_ms == {}


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Guess"


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "embedding"


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


@pytest.mark.parametrize(
    ("spoil", "fact"), [(no_graph, "cannot load"), (unknown_operator, "Guess"), (renamed_output, "'embedding'")]
)
def test_a_graph_that_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Make,
    spoil: Callable[[onnx.ModelProto], None], fact: str,
) -> None:  # fmt: skip
    bundle = changed_graph(folder, tmp_path, Stage.SAM_ENCODER, spoil)
    with make(bundle) as engine, pytest.raises(BundleError, match=fact) as refusal:
        engine.load(Stage.SAM_ENCODER)
    assert "sam_encoder.onnx'" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    # OpenVINO's readers of other formats write to stderr as well.
    assert isinstance(engine, OpenVinoEngine) or capfd.readouterr().err == ""


def shrink_grid(model: onnx.ModelProto) -> None:
    (table,) = [weight for weight in model.graph.initializer if weight.name == "four"]
    table.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 1, 5, 7]), "four"))


def test_a_run_that_fails_is_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Make
) -> None:
    bundle = changed_graph(folder, tmp_path, Stage.ATTN_PROMPTER, shrink_grid)
    with make(bundle) as engine, pytest.raises(RSRefSegError, match="stage 'attn_prompter' failed") as refusal:
        asked(engine, random_image(bundle), PHRASES)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr().err == ""


def test_arguments_that_do_not_fit_are_refused(bundle: Bundle, make: Make) -> None:
    image, tokens = random_image(bundle), bundle.tokenizer().encode(PHRASES[:1])
    with make(bundle) as engine:
        for wrong in (image[:, :, :8], image.astype(np.float32), np.repeat(image, 2, 0)):
            with pytest.raises(BadInputError):
                engine.encode_image(wrong)
        with pytest.raises(BadInputError, match="stage 'sam_encoder' lacks its input image"):
            engine.run(Stage.SAM_ENCODER, {})
        assert engine.load_ms == {}
        encoded = engine.encode_image(image)
        assert set(engine.load_ms) == set(IMAGE_STAGES)  # a stage loads when first used
        (text,) = engine.encode_text(tokens.input_ids, tokens.token_mask)
        for count in (0, 33):
            with pytest.raises(BadInputError, match=f"{count} phrases"):
                engine.answer(encoded, [text] * count)


def test_threads_share_an_engine_that_is_closed_meanwhile(bundle: Bundle, make: Make) -> None:
    images = [random_image(bundle, seed) for seed in range(3)]
    done = threading.Event()

    def close() -> int:
        count = 0
        while not done.is_set():
            engine.close()
            count += 1
        return count

    def call(index: int) -> list[dict[str, np.ndarray]]:
        return [asked(engine, images[index], PHRASES) for _ in range(4)]

    with make(bundle) as engine, ThreadPoolExecutor(4) as pool:
        wanted = [asked(engine, image, PHRASES) for image in images]
        closing = pool.submit(close)
        try:
            found = list(pool.map(call, range(3)))
        finally:
            done.set()
        assert closing.result() > 1
    for alone, results in zip(wanted, found, strict=True):
        assert all(np.array_equal(result[name], alone[name]) for result in results for name in alone)


def test_threads_stop_spinning_after_a_stage(bundle: Bundle) -> None:
    # Threads that continue to spin would take the cores from the next stage.
    with OnnxRuntimeEngine(bundle) as engine:
        engine.load()
        entries = [model.get_session_options() for model in engine._models.values()]
        assert all(entry.get_session_config_entry("session.force_spinning_stop") == "1" for entry in entries)
