"""A bundle on TensorRT-RTX: engines of its real compiler, run on a double of the device."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx_bindings as real

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.engine import ENGINES_VARIABLE, RtxEngine
from rsrefseg.engines.tensorrt.store import build_portable
from tests.support.commands import run_here
from tests.support.doubles import tensorrt_running
from tests.support.doubles.tensorrt_double import doubled_rtx
from tests.support.doubles.tensorrt_values import State
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, change_stage
from tests.support.places import Capsys

PICTURE = np.full((40, 60, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def rtx(cache: Path) -> Iterator[State]:
    with doubled_rtx() as state:
        yield state


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


def logits(bundle: Bundle, engine: RtxEngine | OnnxRuntimeEngine, turns: int = 1) -> np.ndarray:
    with Segmenter(bundle, engine) as segmenter:
        for _ in range(turns):
            answers = segmenter.segment(PICTURE, PHRASES[:2])
    return np.stack([answer.mask_logits for answer in answers])


def test_answers_are_those_of_onnx_runtime_also_as_a_cuda_graph(rtx: State, bundle: Bundle) -> None:
    found = logits(bundle, RtxEngine(bundle), turns=4)
    np.testing.assert_array_equal(found, logits(bundle, OnnxRuntimeEngine(bundle, threads=1)))
    assert rtx.cuda.launched == 2
    assert len(rtx.built) == 5
    assert not any(rtx.cuda.held.values())


def test_engines_and_kernels_are_kept(
    rtx: State, bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        logits(bundle, RtxEngine(bundle))
    assert len(rtx.built) == 5, "built once"
    (kernels,) = (cache / "kernels").iterdir()
    assert kernels.name == f"{real.__version__}_sm86_Double_of_a_GPU.cache"
    assert not caplog.messages
    kernels.write_bytes(b"of another GPU")
    logits(bundle, RtxEngine(bundle))
    assert "compiled again" in caplog.text
    assert kernels.read_bytes() != b"of another GPU"


def test_a_real_export_holds_parity_with_engines_from_elsewhere(
    rtx: State, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    out = build_portable(Bundle.open(exported.bundle), ("sm86", "sm89"), tmp_path / "engines").out
    monkeypatch.setenv(ENGINES_VARIABLE, str(out))
    ran = run_here(capsys, "parity", "--bundle", exported.bundle, "--backend", "tensorrt-rtx", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["holds"] is True
    assert all(f"TensorRT-RTX {rtx.version} on" in provider for provider in report["providers"].values())
    assert len(rtx.built) == 5, "nothing was built for this GPU alone"


def test_engines_from_elsewhere_must_fit(rtx: State, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    out = build_portable(bundle, ("sm89",), bundle.root.with_name("engines")).out
    monkeypatch.setenv(ENGINES_VARIABLE, str(out))
    with pytest.raises(MissingPartError, match="for sm89, this GPU is sm86"):
        RtxEngine(bundle)
    (Path(out or "") / "record.json").write_text("{}")
    with pytest.raises(MissingPartError, match="holds no engine"):
        RtxEngine(bundle)
    assert rtx.deserialized == 0


@pytest.mark.usefixtures("cache")
def test_a_gpu_without_a_compiler_is_refused(bundle: Bundle) -> None:
    with doubled_rtx("8.7"), pytest.raises(MissingPartError, match="sm87"):
        RtxEngine(bundle)


@pytest.mark.parametrize("name", ["Runtime", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext"])
def test_the_double_of_the_device_has_no_names_of_its_own(name: str) -> None:
    mine, theirs = getattr(tensorrt_running, name), getattr(real, name)
    named = {member for member, value in vars(mine).items() if callable(value) and not member.startswith("_")}
    assert named <= set(dir(theirs))


def test_an_engine_of_another_precision_is_refused_when_it_is_loaded(rtx: State, folder: Path) -> None:
    change_stage(folder, Stage.SIGLIP_VISION, precision="fp16")  # the graph is FP32 all the same
    with RtxEngine(Bundle.open(folder)) as engine, pytest.raises(RSRefSegError, match="requested in FP16"):
        engine.load()
