"""Contenders that are no backends: PyTorch eager and compiled, and graphs exported without care. All answer alike."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.agreement import Agreement, agreements_of
from bench.contenders import Contender, EngineContender, contender_names, open_contender
from bench.scenarios import FIRST_PHRASE, SCENARIOS, Scenario, question_for, timed_pass
from bench.torch_contenders import Flavour, TorchContender
from engines.bundle import Bundle
from engines.contracts import Stage
from engines.errors import BadInputError, MissingPartError
from engines.onnxruntime_cuda import BoundTensor, OnnxRuntimeCudaEngine
from engines.reference import load_reference
from exported import Exported


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder that is nobody else's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def agreements(
    contender: Contender, bundle: Bundle, scenarios: tuple[Scenario, ...] = SCENARIOS
) -> dict[tuple[str, str], Agreement]:
    try:
        contender.load()
        return agreements_of(contender, scenarios, load_reference(bundle)[0])
    finally:
        contender.close()


@pytest.mark.parametrize(
    ("name", "scenarios"),
    [
        ("torch", SCENARIOS),
        ("torch-compile", (FIRST_PHRASE,)),  # each number of phrases would be compiled anew
        ("onnx-naive", SCENARIOS),
        ("onnxruntime", SCENARIOS),
        ("openvino-fp32", SCENARIOS),
    ],
)
def test_every_contender_answers_as_the_reference(
    name: str, scenarios: tuple[Scenario, ...], exported: Exported, bundle: Bundle, cache: Path
) -> None:
    found = agreements(open_contender(name, bundle, exported.run), bundle, scenarios)
    places = {
        (scenario.name, span) for scenario in scenarios for span in scenario.spans if not span.startswith("host_")
    }
    assert set(found) == places
    for agreement in found.values():
        assert agreement.holds
        assert agreement.error.share_of_max <= 1e-4


def test_stages_of_an_engine_on_a_device_hand_tensors_on_without_the_host(bundle: Bundle) -> None:
    """ONNX Runtime's CUDA engine bound to host memory: a stand-in where there is no GPU."""
    contender = EngineContender(OnnxRuntimeCudaEngine(bundle, device="cpu"))
    found = agreements(contender, bundle)
    assert all(agreement.holds for agreement in found.values())
    features = contender.run(Stage.SAM_ENCODER, load_reference(bundle)[0].tensors)
    contender.close()
    assert isinstance(features["image_embedding"], BoundTensor)


def test_naive_graphs_are_exported_once_and_kept(exported: Exported, bundle: Bundle, cache: Path) -> None:
    open_contender("onnx-naive", bundle, exported.run).close()
    (folder,) = (cache / "rsrefseg" / "naive").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {f"{stage}.onnx" for stage in Stage} <= {path.name for path in before}
    open_contender("onnx-naive", bundle, exported.run).close()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_naive_export_that_fails_leaves_nothing(
    exported: Exported, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_decoder(*arguments: object) -> None:
        if str(arguments[-1]).endswith("sam_decoder.onnx"):
            raise BadInputError("no")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("bench.naive._export", fail_at_the_decoder)
    with pytest.raises(BadInputError):
        open_contender("onnx-naive", bundle, exported.run)
    assert list((tmp_path / "rsrefseg" / "naive").iterdir()) == []


def test_pytorch_in_half_precision_answers_within_its_tolerance(exported: Exported, bundle: Bundle) -> None:
    """The GPU's flavours on the CPU, the same code under autocast: a stand-in where there is no GPU."""
    contender = TorchContender(bundle, exported.run, "torch-cuda", Flavour("cpu", compiled=False, half=True))
    found = agreements(contender, bundle)
    assert contender.precision(Stage.SAM_ENCODER) == "fp16"
    stages = [agreement for (scenario, _), agreement in found.items() if scenario == "stages"]
    assert all(agreement.holds for agreement in stages)
    assert max(agreement.error.relative_l2 for agreement in stages) > 1e-5  # it really was half precision


def test_pytorch_on_a_gpu_needs_one(exported: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("torch-cuda", "torch-compile-cuda"):
        with pytest.raises(MissingPartError, match=f"{name}: this torch .* finds no CUDA GPU"):
            open_contender(name, bundle, exported.run)


def test_pytorch_runs_the_published_layer_norms(exported: Exported, bundle: Bundle) -> None:
    from segment_anything.modeling.common import LayerNorm2d

    from rsrefseg.sam import ChannelLayerNorm

    contender = TorchContender(bundle, exported.run)
    contender.load()
    modules = [module for stage in contender._stages.values() for module in stage.modules()]
    contender.close()
    assert sum(isinstance(module, LayerNorm2d) for module in modules) == 5  # two of the neck, three of the decoder
    assert not any(isinstance(module, ChannelLayerNorm) for module in modules)


def test_an_engine_answers_in_bench_as_it_does_for_its_users(exported: Exported, bundle: Bundle) -> None:
    from engines.segmenter import Segmenter

    question = question_for(bundle)
    contender = open_contender("onnxruntime", bundle, None)
    contender.load()
    found = timed_pass(contender, SCENARIOS[0], question, 0, None).answer
    contender.close()
    with Segmenter.open(exported.bundle, "onnxruntime") as segmenter:
        (wanted,) = segmenter.segment(question.picture, question.some_phrases(0, 1))
    assert np.array_equal(found.masks[0], wanted.mask)
    assert np.array_equal(found.mask_logits[0], wanted.mask_logits)


def test_nobody_else_takes_part(bundle: Bundle) -> None:
    assert {"torch", "torch-compile", "onnx-naive", "auto", "onnxruntime", "tensorrt"} <= set(contender_names())
    with pytest.raises(BadInputError, match="unknown backend 'tensorflow'"):
        open_contender("tensorflow", bundle, None)
