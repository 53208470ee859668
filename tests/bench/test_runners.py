"""Runners match the reference, use the public engines, and report failures in one line."""

import re
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock, Mock, patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rsrefseg.bench.latency.correctness import Correctness, check
from rsrefseg.bench.latency.runner import Runner
from rsrefseg.bench.latency.runners import EngineRunner, make_runner, open_runners
from rsrefseg.bench.latency.scenarios import SCENARIOS, STAGES, TOTAL, workload_of
from rsrefseg.bench.latency.torch_runners import ReplayedStage, TorchRunner, half_with_sdpa
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.bundle.tolerances import Measure
from rsrefseg.engines.errors import BadInputError, BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.cuda import BoundTensor, OnnxRuntimeCudaEngine
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.model import build_model
from tests.support.exported import Exported
from tests.support.small import small_config
from tests.support.stage_inputs import as_tuple, stage_inputs
from tests.support.upstream import randomize
from tests.support.upstream2 import small_config2


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


def checked(runner: Runner) -> dict[tuple[str, str], Correctness]:
    runner.load()
    return check(runner, SCENARIOS, load_reference(runner.bundle)[0])


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino-fp32"])
def test_every_runner_computes_the_reference(name: str, exported: Exported, bundle: Bundle) -> None:
    if name.startswith("openvino"):
        pytest.importorskip("openvino")
    (runner,), _ = open_runners([name], bundle, exported.run)
    found = checked(runner)
    runner.close()
    spans = {(scenario.name, TOTAL) for scenario in SCENARIOS if not scenario.by_stage}
    assert set(found) == spans | {(STAGES.name, stage) for stage in Stage}
    for (_, span), one in found.items():
        assert one.failures == ()
        assert (one.errors[Measure.SHARE_OF_MAX] or 0.0) <= 1e-4
        assert one.text.startswith("IoU 1.0") == (span == TOTAL), "masks for trained weights, errors for stages"
    assert set(runner.providers) == set(runner.precisions) == set(Stage)


def test_tensors_on_a_device_stay_there_from_stage_to_stage(bundle: Bundle) -> None:
    """Return ONNX Runtime's CUDA engine bound to host memory, for machines without a GPU."""
    runner = EngineRunner(OnnxRuntimeCudaEngine(bundle, device="cpu"))
    assert all(one.failures == () for one in checked(runner).values())
    features = runner.run(Stage.SAM_ENCODER, load_reference(bundle)[0].tensors)
    runner.close()
    assert isinstance(features["image_embedding"], BoundTensor)


def test_pytorch_in_half_precision_is_within_its_tolerance(exported: Exported, bundle: Bundle) -> None:
    """Return a GPU runner on the CPU, with the same code but no CUDA graphs."""
    runner = TorchRunner(bundle, exported.run, "torch-cuda", device="cpu")
    runner.open()
    found = checked(runner)
    runner.close()
    stages = [found[STAGES.name, stage] for stage in Stage]
    assert all(one.failures == () for one in stages)
    assert max(one.errors[Measure.RELATIVE_L2] or 0.0 for one in stages) > 1e-5, "it really was half precision"
    assert set(runner.precisions.values()) == {"fp16"}


@pytest.mark.parametrize(
    ("config", "attentions"), [(small_config(), (1, 1, 0, 2, 7)), (small_config2(), (1, 1, 26, 6, 7))], ids=["1", "2"]
)
def test_half_precision_has_half_weights_and_no_attention_but_sdpa(
    config: ModelConfig, attentions: tuple[int, ...]
) -> None:
    model = randomize(build_model(config))
    for stage, count in zip(Stage, attentions, strict=True):
        inputs = stage_inputs(model, stage)
        with torch.inference_mode():
            expected = as_tuple(model.stage(stage)(*inputs))
        module = half_with_sdpa(model.stage(stage))
        layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        assert {layer.weight.dtype for layer in layers} == {torch.float16}
        counted = patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention)
        with counted as called, torch.inference_mode(), torch.autocast("cpu", torch.float16):
            found = as_tuple(module(*inputs))
        assert called.call_count == count
        for one, reference in zip(found, expected, strict=True):
            assert tensor_error(reference.numpy(), one.numpy()).relative_l2 <= 1e-2, "what parity allows in FP16"


def test_a_replayed_stage_copies_its_inputs_and_is_recorded_once_for_each_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    module = Mock(side_effect=lambda x: x + 1)
    stage = ReplayedStage(module)
    for size in (2, 3, 2, 3):
        stage(torch.full((size,), float(size)))
    assert module.call_count == 2 * 4, "three times before the recording and once in it"
    assert torch.cuda.CUDAGraph.return_value.replay.call_count == 4
    inputs = [own.tolist() for _, (own,), _ in stage._recordings.values()]
    assert inputs == [[2, 2], [3, 3, 3]]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what is mapped")
def test_pytorch_runs_the_published_modules_on_weights_in_memory(exported: Exported, bundle: Bundle) -> None:
    from segment_anything.modeling.common import LayerNorm2d

    from rsrefseg.model.sam import ChannelLayerNorm

    (runner,), _ = open_runners(["torch"], bundle, exported.run)
    assert isinstance(runner, TorchRunner)
    runner.load()
    stages = list(runner._stages.values())
    modules = [module for stage in stages for module in stage.modules()]
    assert sum(isinstance(module, LayerNorm2d) for module in modules) == 5, "two of the neck, three of the decoder"
    assert not any(isinstance(module, ChannelLayerNorm) for module in modules)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("merged.safetensors")]
    files = [range(*(int(end, 16) for end in line.partition(" ")[0].split("-"))) for line in lines]
    for weight in (weight for stage in stages for weight in stage.parameters()):
        assert not any(weight.data_ptr() in file for file in files), "dropped pages would be read again"
    runner.close()


def test_an_engine_predicts_what_segmenter_predicts(exported: Exported, bundle: Bundle) -> None:
    workload = workload_of(load_reference(bundle))
    (runner,), _ = open_runners(["onnxruntime"], bundle, None)
    phrases = workload.some_phrases(0, 1)
    found = runner.predict(runner.encode(workload.image), phrases, workload.size)
    runner.close()
    with Segmenter.open(exported.bundle, "onnxruntime") as segmenter:
        (wanted,) = segmenter.segment(workload.image, phrases)
    assert np.array_equal(found.masks[0], wanted.mask)
    assert np.array_equal(found.mask_logits[0], wanted.mask_logits)


def test_opening_an_engine_verifies_its_files(exported: Exported, tmp_path: Path) -> None:
    """Digests are part of the second step of a start-up, as for PyTorch."""
    copy = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    graph = copy / "sam_decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    runner = make_runner("onnxruntime", Bundle.open(copy), None)
    with pytest.raises(BundleError, match=r"sam_decoder\.onnx"):
        runner.open()


def test_torch_is_left_out_with_the_reason(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="no merged model"):
        open_runners(["torch", "auto"], bundle, tmp_path)
    for missing, error in (("no run", BadInputError), (r"rsrefseg\[train\]", MissingPartError)):
        opened, (note,) = open_runners(["torch", "auto", "onnxruntime"], bundle, None)
        assert [runner.name for runner in opened] == ["onnxruntime"]
        assert re.match(f"without torch: .*{missing}", note)
        for name in ("torch", "onnx-naive"):
            with pytest.raises(error, match=missing):
                open_runners([name], bundle, None)
        monkeypatch.setattr("rsrefseg.bench.latency.torch_runners.find_spec", lambda name: None)


@pytest.mark.parametrize("names", [["tensorflow"], ["torch", "tensorflow"], [""], []])
def test_unknown_runners_and_none_are_refused(bundle: Bundle, names: list[str]) -> None:
    with pytest.raises(BadInputError, match=r"'tensorflow': known are torch, torch-compile, .*auto|--backends"):
        open_runners(names, bundle, None)


@pytest.mark.parametrize("name", ["torch-cuda", "torch-compile-cuda"])
def test_cuda_runners_need_cuda(name: str, exported: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingPartError, match=f"{name}: .* no CUDA GPU"):
        make_runner(name, bundle, exported.run)


def test_a_failing_library_is_one_line(exported: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (runner,), _ = open_runners(["torch"], bundle, exported.run)
    image = workload_of(load_reference(bundle)).image
    error = torch.cuda.OutOfMemoryError("CUDA out of memory.\n GPU 0 has a capacity")
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", Mock(side_effect=error))
        with pytest.raises(RSRefSegError, match=r"^torch: loading failed .*memory\. GPU 0"):
            runner.load()
    runner.load()
    monkeypatch.setattr(runner, "_on_device", Mock(side_effect=error))
    with pytest.raises(RSRefSegError, match=r"^torch: stage 'siglip_vision' failed .*--backends"):
        runner.encode(image)
    for unchanged in (BadInputError("no"), KeyboardInterrupt()):
        with pytest.raises(type(unchanged)) as caught, runner.reporting("loading"):
            raise unchanged
        assert caught.value is unchanged
    runner.close()
