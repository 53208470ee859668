"""OpenVINO on an Intel GPU: in FP16 where the GPU computes in it, asked for by name, and never what `auto` takes."""

import shutil
import sys
from pathlib import Path

import pytest

from rsrefseg.bench.latency.runners import make_runner
from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.doctor import Ability, examine
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.openvino import library as openvino_library
from rsrefseg.engines.openvino.library import unavailable_reason
from tests.support.commands import assert_refused, run_here
from tests.support.doubles.openvino_gpu_double import PRODUCT, IntelGpuDouble
from tests.support.engines import asked, assert_fault_is_found, exact, random_image, share_of_max
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, change_stage
from tests.support.places import beside_bundle

pytest.importorskip("openvino")


@pytest.fixture
def intel_gpu(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> IntelGpuDouble:
    """No Intel GPU: the CPU plugin under that name."""
    double = IntelGpuDouble(openvino_library.core(), tmp_path_factory.mktemp("rounded"))
    monkeypatch.setattr(openvino_library, "_core", lambda: double)
    return double


def on_intel_gpu() -> Ability:
    return next(ability for ability in examine().abilities if "(openvino-gpu)" in ability.name)


@pytest.mark.skipif(unavailable_reason(openvino_library.GPU) is None, reason="this machine has an Intel GPU")
def test_without_an_intel_gpu_openvino_on_one_is_refused_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beside_bundle(folder, tmp_path, monkeypatch)
    reason = "finds no Intel GPU, only CPU: if this machine has one, install its OpenCL driver"
    for command in (["infer", "scene.png", "the red square"], ["parity"]):
        assert_refused(run_here(capsys, *command, "--backend", "openvino-gpu"), reason)
    assert not on_intel_gpu().works
    assert reason in on_intel_gpu().detail


def test_on_an_intel_gpu_the_encoders_compute_in_half_precision(
    exported: Exported, tmp_path: Path, intel_gpu: IntelGpuDouble
) -> None:
    report = run_parity(exported.bundle, "openvino-gpu", exported.data, "val", exported.run)
    assert report.holds
    assert report.precision == "fp16"
    assert report.backend_reason == "openvino-gpu, as requested"
    for stage, provider in report.providers.items():
        exact_stage = stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
        assert provider.endswith(f" GPU {PRODUCT}, {'FP32' if exact_stage else 'FP16'}")
    assert sorted(intel_gpu.precisions) == ["f16"] * 3 + ["f32"] * 2
    # The double rounds the encoders' weights: what it gives is not what FP32 gives.
    assert max(row.relative_l2 for row in report.tensors if row.check == "stage") > 1e-5
    for stage in IMAGE_STAGES:
        assert_fault_is_found(exported, tmp_path / stage, stage, "openvino-gpu")


def test_answers_on_an_intel_gpu_are_the_users_own(bundle: Bundle, intel_gpu: IntelGpuDouble) -> None:
    assert make_runner(Backend.OPENVINO_GPU, bundle, None).device == "intel-gpu"  # no processor's roofline is its own
    with select_backend(Backend.OPENVINO_GPU, bundle).engine as engine, exact(bundle) as fp32:
        found = asked(engine, random_image(bundle), PHRASES)
        assert 0 < share_of_max(asked(fp32, random_image(bundle), PHRASES), found) < 0.01
        assert all(array.flags.owndata for array in engine.encode_image(random_image(bundle)).values())


def test_a_half_bundle_computes_on_an_intel_gpu_as_its_plan_says(
    folder: Path, tmp_path: Path, intel_gpu: IntelGpuDouble
) -> None:
    """Asked for FP16, the plugin would also compute in it what the graphs keep in FP32."""
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    for stage in Stage:
        change_stage(copy, stage, precision="fp16")
    with select_backend(Backend.OPENVINO_GPU, Bundle.open(copy)).engine as engine:
        assert {engine.precision_of(stage) for stage in Stage} == {"fp16"}
        assert engine.provider_of(Stage.SAM_ENCODER).endswith(", FP16")
        assert engine.provider_of(Stage.SAM_DECODER).endswith(", FP32")
    assert sorted(intel_gpu.precisions) == ["dynamic"] * 3 + ["f32"] * 2


def test_an_intel_gpu_without_half_precision_computes_in_fp32(bundle: Bundle, intel_gpu: IntelGpuDouble) -> None:
    intel_gpu.computes_fp16 = False
    with select_backend(Backend.OPENVINO_GPU, bundle).engine as engine:
        assert {engine.precision_of(stage) for stage in Stage} == {"fp32"}
    assert set(intel_gpu.precisions) == {"f32"}
    assert on_intel_gpu().detail.endswith("FP32 only, this GPU has no FP16")


def test_of_several_intel_gpus_a_discrete_one_computes(bundle: Bundle, intel_gpu: IntelGpuDouble) -> None:
    intel_gpu.available_devices = ["CPU", "GPU.0", "GPU.1", "GPU.2"]
    intel_gpu.discrete = {"GPU.1", "GPU.2"}
    with select_backend(Backend.OPENVINO_GPU, bundle).engine as engine:
        assert f" GPU.1 {PRODUCT}, " in engine.provider_of(Stage.SAM_ENCODER)
    assert f"GPU.1 {PRODUCT}, FP16" in on_intel_gpu().detail
    intel_gpu.discrete = set()
    with select_backend(Backend.OPENVINO_GPU, bundle).engine as engine:
        assert f" GPU.0 {PRODUCT}, " in engine.provider_of(Stage.SAM_ENCODER)


def test_auto_does_not_use_an_intel_gpu(
    bundle: Bundle, intel_gpu: IntelGpuDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert select_backend("auto", bundle).engine.name == "openvino-fp32"
