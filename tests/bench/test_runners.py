"""Contenders that are no backends: PyTorch eager and compiled, and graphs exported without care. All answer alike."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from rsrefseg.bench.latency.agreement import Agreement, agreements_of
from rsrefseg.bench.latency.runners import Contender, EngineContender, contender_names, failures_told, open_contender
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, SCENARIOS, Scenario, question_for, timed_pass
from rsrefseg.bench.latency.torch_runners import Flavour, TorchContender
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.cuda import BoundTensor, OnnxRuntimeCudaEngine
from tests.support.exported import Exported


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


def failing(error: Exception) -> Callable[..., NoReturn]:
    """A function that takes anything and fails."""

    def fail(*given: object, **named: object) -> NoReturn:
        raise error

    return fail


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
    assert folder.name.endswith(f"-torch-{torch.__version__}-rsrefseg-{version('rsrefseg')}")
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
    monkeypatch.setattr("rsrefseg.bench.latency.naive_export._export", fail_at_the_decoder)
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


def test_a_compiler_that_fails_is_told_in_one_line(exported: Exported, bundle: Bundle) -> None:
    torch._dynamo.reset()
    contender = TorchContender(bundle, exported.run, "torch-compile")
    contender.load()
    changes = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    told = (
        r"^torch-compile: stage 'siglip_vision' failed \(InductorError: InvalidCxxCompiler: No working C\+\+ compiler "
        r"found in .*'/no/such/compiler'\)\): install one, such as g\+\+$"
    )
    with torch._inductor.config.patch(changes), pytest.raises(RSRefSegError, match=told):
        contender.encode(question_for(bundle).picture)
    contender.close()
    torch._dynamo.reset()


OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a capacity")
NO_MEMORY = (
    r"failed \(OutOfMemoryError: CUDA out of memory\..*\): close other programs, or leave torch out of --backends$"
)


def test_memory_that_is_missing_is_told_with_the_part_that_wanted_it(
    exported: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = question_for(bundle)
    contender = TorchContender(bundle, exported.run)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", failing(OUT_OF_MEMORY))
        with pytest.raises(RSRefSegError, match=f"^torch: loading {NO_MEMORY}"):
            contender.load()
    contender.load()
    with monkeypatch.context() as patch:
        patch.setattr(contender, "_wait", failing(OUT_OF_MEMORY))
        with pytest.raises(RSRefSegError, match=f"^torch: stage 'siglip_vision' {NO_MEMORY}"):
            contender.encode(question.picture)
    features = contender.encode(question.picture)
    monkeypatch.setattr(torch.nn.functional, "interpolate", failing(OUT_OF_MEMORY))
    with pytest.raises(RSRefSegError, match=f"^torch: upsampling masks {NO_MEMORY}"):
        contender.finish(torch.zeros(1, 1, 4, 4), (8, 8))
    contender.close()
    assert features


@pytest.mark.parametrize("error", [BadInputError("no"), AssertionError("no"), KeyboardInterrupt()])
def test_what_is_told_already_or_is_no_failure_of_a_library_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, failures_told("torch", "loading"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("one\n  two"), "torch: loading failed (RuntimeError: one two): try again"),
        (MemoryError(), "torch: loading failed (MemoryError): close other programs, or leave torch out of --backends"),
        (
            ModuleNotFoundError("No module named 'onnxscript'"),
            "torch: loading failed (ModuleNotFoundError: No module named 'onnxscript'): install the extra with "
            "`pip install 'rsrefseg[train]'`",
        ),
    ],
)
def test_a_librarys_failure_is_one_line_with_the_way_out(error: Exception, told: str) -> None:
    with pytest.raises(RSRefSegError, match=f"^{re.escape(told)}$"), failures_told("torch", "loading", "try again"):
        raise error


def test_a_naive_graph_that_fails_is_told_by_its_stage(exported: Exported, bundle: Bundle, cache: Path) -> None:
    contender = open_contender("onnx-naive", bundle, exported.run)
    contender.load()
    with pytest.raises(RSRefSegError, match=r"^onnx-naive: stage 'sam_encoder' failed \(InvalidArgument: .*image"):
        contender.run(Stage.SAM_ENCODER, {"image": np.zeros((1, 3, 2, 2), np.uint8)})
    contender.close()


def test_a_naive_export_that_a_library_gives_up_is_told_by_its_stage(
    exported: Exported, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.onnx.export", failing(RuntimeError("no such operator")))
    told = r"^onnx-naive: exporting 'siglip_vision' failed \(RuntimeError: no such operator\)$"
    with pytest.raises(RSRefSegError, match=told):
        open_contender("onnx-naive", bundle, exported.run)
    assert list((tmp_path / "rsrefseg" / "naive").iterdir()) == []


def test_a_damaged_naive_graph_says_what_to_remove(
    exported: Exported, bundle: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_contender("onnx-naive", bundle, exported.run).close()
    shutil.copytree(cache / "rsrefseg" / "naive", tmp_path / "rsrefseg" / "naive")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (folder,) = (tmp_path / "rsrefseg" / "naive").iterdir()
    (folder / "sam_decoder.onnx").write_bytes(b"cut off")
    told = f"^onnx-naive: loading 'sam_decoder' failed .*: remove '{re.escape(str(folder))}' to have it exported again$"
    contender = open_contender("onnx-naive", bundle, exported.run)
    with pytest.raises(RSRefSegError, match=told):
        contender.load()
    contender.close()


def test_pytorch_on_a_gpu_needs_one(exported: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("torch-cuda", "torch-compile-cuda"):
        with pytest.raises(MissingPartError, match=f"{name}: this torch .* finds no CUDA GPU"):
            open_contender(name, bundle, exported.run)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_pytorch_has_its_weights_in_memory_not_in_a_mapped_file(exported: Exported, bundle: Bundle) -> None:
    contender = TorchContender(bundle, exported.run)
    contender.load()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("merged.safetensors")]
    files = [range(*(int(end, 16) for end in line.partition(" ")[0].split("-"))) for line in lines]
    assert contender._model is not None
    weights = [*contender._model.parameters(), *contender._model.buffers()]
    contender.close()
    assert weights
    for weight in weights:
        where = weight.data_ptr()
        assert not any(where in file for file in files), "pages dropped between turns would be read again"


def test_pytorch_runs_the_published_layer_norms(exported: Exported, bundle: Bundle) -> None:
    from segment_anything.modeling.common import LayerNorm2d

    from rsrefseg.model.sam import ChannelLayerNorm

    contender = TorchContender(bundle, exported.run)
    contender.load()
    modules = [module for stage in contender._stages.values() for module in stage.modules()]
    contender.close()
    assert sum(isinstance(module, LayerNorm2d) for module in modules) == 5  # two of the neck, three of the decoder
    assert not any(isinstance(module, ChannelLayerNorm) for module in modules)


def test_an_engine_answers_in_bench_as_it_does_for_its_users(exported: Exported, bundle: Bundle) -> None:
    from rsrefseg.engines.segmenter import Segmenter

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
