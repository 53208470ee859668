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
from tests.support.made_bundle import PHRASES, changed_graph, make_dynamic

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


def test_tokens_that_do_not_fit_are_refused_in_dynamic_int8(folder: Path, tmp_path: Path) -> None:
    """Such bundles run one phrase at a time."""
    dynamic = Bundle.open(make_dynamic(folder, tmp_path / "bundle"))
    with OnnxRuntimeEngine(dynamic, threads=1) as engine, pytest.raises(BadInputError):
        engine.encode_text(np.zeros((2, 64), np.int64), np.ones((1, 64), np.bool_))


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


@pytest.mark.parametrize("together", [True, False])
def test_all_stages_load_once(bundle: Bundle, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loads, "loads_together", together)
    with Loads(bundle, parallel=len(Stage) if together else 1) as engine, ThreadPoolExecutor(4) as pool:
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


def shrink_grid(model: onnx.ModelProto) -> None:
    (table,) = [weight for weight in model.graph.initializer if weight.name == "four"]
    table.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 1, 5, 7]), "four"))


@pytest.mark.parametrize(
    ("stage", "spoil", "error", "facts"),
    [
        (Stage.SAM_ENCODER, no_graph, BundleError, ["sam_encoder.onnx'", "cannot load"]),
        (Stage.SAM_ENCODER, unknown_operator, BundleError, ["sam_encoder.onnx'", "Guess"]),
        (Stage.SAM_ENCODER, renamed_output, BundleError, ["sam_encoder.onnx'", "'embedding'"]),
        (Stage.ATTN_PROMPTER, shrink_grid, RSRefSegError, ["stage 'attn_prompter' failed"]),
    ],
)
def test_a_graph_that_does_not_fit_or_fails_is_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Make,
    stage: Stage, spoil: Callable[[onnx.ModelProto], None], error: type[RSRefSegError], facts: list[str],
) -> None:  # fmt: skip
    bundle = changed_graph(folder, tmp_path, stage, spoil)
    with make(bundle) as engine, pytest.raises(error) as refusal:
        asked(engine, random_image(bundle), PHRASES)
    assert all(fact in str(refusal.value) for fact in facts)
    assert "\n" not in str(refusal.value)
    # OpenVINO's readers of other formats write to stderr as well.
    assert (isinstance(engine, OpenVinoEngine) and error is BundleError) or capfd.readouterr().err == ""


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
                engine.predict(encoded, [text] * count)


def test_threads_share_an_engine_that_is_closed_meanwhile(bundle: Bundle, make: Make) -> None:
    images = [random_image(bundle, seed) for seed in range(3)]
    with make(bundle) as engine, ThreadPoolExecutor(3) as pool:
        wanted = [asked(engine, image, PHRASES) for image in images] * 4
        answers = [pool.submit(asked, engine, image, PHRASES) for image in images * 4]
        closed = 0
        while not all(answer.done() for answer in answers):
            engine.close()
            closed += 1
    assert closed > 1
    for alone, answer in zip(wanted, answers, strict=True):
        assert all(np.array_equal(answer.result()[name], alone[name]) for name in alone)


def test_threads_stop_spinning_after_a_stage(bundle: Bundle) -> None:
    # Threads that continue to spin would take the cores from the next stage.
    with OnnxRuntimeEngine(bundle) as engine:
        engine.load()
        entries = [model.get_session_options() for model in engine._models.values()]
        assert all(entry.get_session_config_entry("session.force_spinning_stop") == "1" for entry in entries)
