"""OpenVINO computes what ONNX Runtime does, reports in which precision, and keeps what it gave."""

import textwrap
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.backends import Backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.openvino import engine as openvino_engine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from rsrefseg.engines.openvino.library import computes_bf16
from tests.support.commands import run_alone
from tests.support.engines import asked, assert_fault_is_found, exact, random_image, share_of_max
from tests.support.exported import Exported

pytest.importorskip("openvino")


def test_in_fp32_it_computes_what_onnxruntime_does(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    with exact(bundle) as ours, OnnxRuntimeEngine(bundle, threads=1) as plain:
        for sample in load_reference(bundle):
            for phrases in (sample.phrases[:1], sample.phrases * 3):
                image = sample.tensors["image"]
                # Sums in another order, as between ONNX Runtime and PyTorch: the same limit.
                assert share_of_max(asked(plain, image, phrases), asked(ours, image, phrases)) < 1e-4


@pytest.mark.parametrize("backend", [Backend.OPENVINO, Backend.OPENVINO_FP32])
def test_parity_holds_and_names_device_and_precision(exported: Exported, backend: Backend) -> None:
    report = run_parity(exported.bundle, backend, exported.data, "val", exported.run)
    assert report.holds
    bf16 = backend is Backend.OPENVINO and computes_bf16()
    assert report.precision == ("bf16" if bf16 else "fp32")
    for stage, provider in report.providers.items():
        assert provider.startswith("OpenVINO 2")
        # Prompter and decoder are cheap, and decide the edge of a mask.
        exact_stage = stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
        assert provider.endswith(" CPU, BF16" if bf16 and not exact_stage else " CPU, FP32")


@pytest.mark.skipif(not computes_bf16(), reason="this processor has no BF16")
def test_bf16_is_really_computed_in_and_its_limits_still_find_a_fault(exported: Exported, tmp_path: Path) -> None:
    bundle = Bundle.open(exported.bundle)
    sample = load_reference(bundle)[0]
    with exact(bundle) as fp32, OpenVinoEngine(bundle) as bf16:
        wanted, found = (asked(engine, sample.tensors["image"], sample.phrases) for engine in (fp32, bf16))
    assert 1e-4 < share_of_max(wanted, found) < 0.1  # a product rounds by 4e-3
    for stage in IMAGE_STAGES:
        assert_fault_is_found(exported, tmp_path / stage, stage, "openvino")


def test_results_are_never_overwritten(bundle: Bundle) -> None:
    with exact(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        first = engine.encode_image(random_image(bundle, 1))
        for seed in range(2, 12):
            engine.encode_image(random_image(bundle, seed))
        wanted = plain.encode_image(random_image(bundle, 1))
    assert share_of_max(wanted, first) < 1e-5  # the engine is closed


def test_images_of_any_layout_give_what_each_gives_alone(bundle: Bundle) -> None:
    images = [random_image(bundle, seed) for seed in range(3)]
    images[1].flags.writeable = False
    with exact(bundle) as engine:
        for stage in IMAGE_STAGES:
            together = engine.run(stage, {"image": np.asfortranarray(np.concatenate(images))})
            for row, image in enumerate(images):
                for name, alone in engine.run(stage, {"image": image}).items():
                    assert np.array_equal(together[name][row : row + 1], alone)


def test_a_processor_without_bf16_computes_in_fp32(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "computes_bf16", lambda: False)
    with OpenVinoEngine(bundle) as engine:
        assert {engine.precision_of(stage) for stage in Stage} == {"fp32"}
        assert engine.provider_of(Stage.SAM_ENCODER).endswith("CPU, FP32")


LEFT_IN_ORDER = "first.close(); del first; second.close(); del second"
LEFT_ON_A_THREAD = """second.close(); del second; last = [first]; del first
        thread = threading.Thread(target=last.clear); thread.start(); thread.join()"""


@pytest.mark.parametrize("leave", [LEFT_IN_ORDER, LEFT_ON_A_THREAD], ids=["in order", "on another thread"])
def test_a_signal_after_engines_are_gone_is_handled(folder: Path, tmp_path: Path, leave: str) -> None:
    code = f"""
        import os, signal, sys, threading
        from rsrefseg.engines.bundle.bundle import Bundle
        from rsrefseg.engines.bundle.contracts import Stage
        from rsrefseg.engines.openvino.engine import OpenVinoEngine
        signal.signal(signal.SIGUSR1, lambda *_: print("done"))
        first, second = (OpenVinoEngine(Bundle.open(sys.argv[1]), threads=1) for _ in range(2))
        first.load(Stage.SAM_DECODER), second.load(Stage.SAM_DECODER)
        {leave}
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    assert_done(code, folder, tmp_path)


def test_first_reads_of_constants_do_not_deadlock(folder: Path, tmp_path: Path) -> None:
    """Python switches threads as often as it can here, so that a deadlock that is rare otherwise is certain."""
    code = """
        import sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from rsrefseg.engines.openvino.library import core
        graph = core().read_model(Path(sys.argv[1]) / "siglip_text.onnx")
        constants = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"][:4]
        together = threading.Barrier(len(constants))
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(len(constants)) as pool:
            list(pool.map(lambda constant: (together.wait(), constant.data), constants))
        print("done")
    """
    assert_done(code, folder, tmp_path)


def assert_done(code: str, bundle: Path, home: Path) -> None:
    """A process of its own runs the code on the bundle, prints that it is done and exits with 0."""
    ran = run_alone(bundle, script=textwrap.dedent(code), environment={"HOME": str(home)}, timeout=120)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr
