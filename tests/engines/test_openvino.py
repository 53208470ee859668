"""OpenVINO computes what ONNX Runtime does, says in which precision, keeps what it gave and sends nothing."""

import contextlib
import mmap
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.doctor import examine
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.errors import BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.openvino import engine as openvino_engine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from rsrefseg.engines.openvino.library import computes_bf16
from rsrefseg.engines.openvino.mapped_files import mapped_addresses, releasing_pages
from rsrefseg.engines.segmenter import Segmenter
from tests.support.exported import Exported
from tests.support.made_bundle import PHRASES, make_bundle, replaced_graph
from tests.support.openvino_answers import asked, exact, nudged_bundle, picture, share_of_max

pytest.importorskip("openvino")
from tests.support import ROOT

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
needs_bf16 = pytest.mark.skipif(not computes_bf16(), reason="this processor has no BF16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("openvino") / "bundle").root


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


def weights_of(bundle: Bundle, stage: Stage) -> list[Path]:
    return [bundle.root / record.name for record in bundle.manifest.stages[stage].data]


def pages_of(addresses: frozenset[range]) -> set[int]:
    """What is mapped in one piece may be in several later."""
    return {page for mapping in addresses for page in mapping[:: mmap.PAGESIZE]}


@only_linux
def test_weights_are_given_back_while_a_stage_loads_and_first_runs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[frozenset[range]] = []

    @contextlib.contextmanager
    def noted(addresses: frozenset[range]) -> Iterator[None]:
        entered.append(addresses)
        with releasing_pages(addresses):
            yield
        assert pages_of(addresses) <= pages_of(mapped_addresses(files))  # else it was not weights that were given back

    files = weights_of(bundle, Stage.SAM_ENCODER)
    monkeypatch.setattr(openvino_engine, "releasing_pages", noted)
    with exact(bundle) as engine:
        engine.load(Stage.SAM_ENCODER)
        (weights,) = entered
        assert len(pages_of(weights)) * mmap.PAGESIZE >= sum(file.stat().st_size for file in files)
        for _ in range(2):
            engine.run(Stage.SAM_ENCODER, {"image": picture(bundle)})
        assert entered == [weights, weights]


@only_linux
def test_of_a_bundle_that_another_engine_runs_only_its_own_mapping_is_given_back(bundle: Bundle) -> None:
    """The other's may be gone by then, and something else in its place."""
    files = weights_of(bundle, Stage.SAM_ENCODER)
    with exact(bundle) as first, exact(bundle) as second:
        first.load(Stage.SAM_ENCODER)
        others = mapped_addresses(files)
        second.load(Stage.SAM_ENCODER)
        source = second._sources[Stage.SAM_ENCODER]
        assert source.weights.isdisjoint(others)
        assert source.weights | others == mapped_addresses(files)


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
        # Prompter and decoder are cheap, and a mask's edge is theirs.
        exact_stage = stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
        assert provider.endswith(" CPU, BF16" if bf16 and not exact_stage else " CPU, FP32")


@needs_bf16
def test_bf16_is_really_computed_in(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    sample = load_reference(bundle)[0]
    with exact(bundle) as fp32, OpenVinoEngine(bundle) as bf16:
        wanted, found = (asked(engine, sample.tensors["image"], sample.phrases) for engine in (fp32, bf16))
    assert 1e-4 < share_of_max(wanted, found) < 0.1  # a product rounds by 4e-3


@needs_bf16
@pytest.mark.parametrize("stage", [Stage.SIGLIP_VISION, Stage.SAM_ENCODER])
def test_the_limits_of_bf16_still_find_a_fault(exported: Exported, tmp_path: Path, stage: Stage) -> None:
    report = run_parity(nudged_bundle(exported, tmp_path, stage), "openvino")
    assert {row.stage for row in report.tensors if row.check == "stage" and not row.passed} == {stage}


def test_what_was_given_is_never_written_again(bundle: Bundle) -> None:
    with exact(bundle) as engine, OnnxRuntimeEngine(bundle, threads=1) as plain:
        first = engine.encode_image(picture(bundle, 1))
        for seed in range(2, 12):
            engine.encode_image(picture(bundle, seed))
        wanted = plain.encode_image(picture(bundle, 1))
        assert share_of_max(wanted, first) < 1e-5
    assert share_of_max(wanted, first) < 1e-5  # the engine is closed


@pytest.mark.parametrize("stage", IMAGE_STAGES)
def test_pictures_at_once_are_what_they_are_one_by_one(bundle: Bundle, stage: Stage) -> None:
    pictures = [picture(bundle, seed) for seed in range(3)]
    with exact(bundle) as engine:
        together = engine.run(stage, {"image": np.concatenate(pictures)})
        for row, image in enumerate(pictures):
            for name, alone in engine.run(stage, {"image": image}).items():
                assert np.array_equal(together[name][row : row + 1], alone)


def test_a_cached_picture_answers_as_before(bundle: Bundle) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8) for seed in range(3)]
    with Segmenter(bundle, exact(bundle), cached_images=3) as segmenter:
        fresh = [segmenter.segment(pixels, PHRASES) for pixels in pictures]
        for pixels, answers in zip(pictures, fresh, strict=True):
            for again, before in zip(segmenter.segment(pixels, PHRASES), answers, strict=True):
                assert np.array_equal(again.mask_logits, before.mask_logits)


def test_arrays_of_any_layout_are_understood(bundle: Bundle) -> None:
    image = picture(bundle)
    turned = np.asfortranarray(image)
    sealed = image.copy()
    sealed.flags.writeable = False
    with exact(bundle) as engine:
        wanted = engine.encode_image(image)
        for other in (turned, sealed):
            found = engine.encode_image(other)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_threads_can_share_an_engine(bundle: Bundle) -> None:
    wrong: list[object] = []
    with exact(bundle) as engine:
        wanted = {seed: asked(engine, picture(bundle, seed), PHRASES) for seed in range(6)}

        def ask(seed: int) -> None:
            try:
                for _ in range(10):
                    found = asked(engine, picture(bundle, seed), PHRASES)
                    wrong.extend(name for name in found if not np.array_equal(found[name], wanted[seed][name]))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_closed_engine_loads_again(bundle: Bundle) -> None:
    engine = exact(bundle)
    before = asked(engine, picture(bundle), PHRASES)
    engine.close()
    assert engine.load_ms == {}
    after = asked(engine, picture(bundle), PHRASES)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_graph_it_cannot_read_is_one_line(folder: Path, tmp_path: Path) -> None:
    bundle = replaced_graph(folder, tmp_path, Stage.SAM_ENCODER, lambda path: path.write_bytes(b"no graph" * 100))
    with pytest.raises(BundleError, match=r"openvino 2\S+ cannot load .*sam_encoder.onnx'") as refusal:
        exact(bundle).load(Stage.SAM_ENCODER)
    assert "\n" not in str(refusal.value)


def test_an_operator_it_does_not_know_is_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    def rename(path: Path) -> None:
        model = onnx.load(path)
        model.graph.node[-1].op_type = "Guess"
        onnx.save(model, path)

    bundle = replaced_graph(folder, tmp_path, Stage.SAM_DECODER, rename)
    with pytest.raises(BundleError, match=r"cannot load .*sam_decoder.onnx'.*Guess") as refusal:
        exact(bundle).load(Stage.SAM_DECODER)
    assert "\n" not in str(refusal.value)


def test_a_graph_with_another_face_than_its_contract_is_refused(folder: Path, tmp_path: Path) -> None:
    def rename(path: Path) -> None:
        model = onnx.load(path)
        model.graph.output[0].name = model.graph.node[-1].output[0] = "embedding"
        onnx.save(model, path)

    bundle = replaced_graph(folder, tmp_path, Stage.SAM_ENCODER, rename)
    with pytest.raises(BundleError, match=r"the outputs of 'sam_encoder.onnx' are \{'embedding'"):
        exact(bundle).load(Stage.SAM_ENCODER)


def test_a_graph_that_fails_while_running_is_one_line(folder: Path, tmp_path: Path) -> None:
    def shrink(path: Path) -> None:
        model = onnx.load(path)
        (table,) = [weight for weight in model.graph.initializer if weight.name == "four"]
        table.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 1, 5, 7]), "four"))
        onnx.save(model, path)

    bundle = replaced_graph(folder, tmp_path, Stage.ATTN_PROMPTER, shrink)
    # With one thread OpenVINO 2026.4 tells nothing, gives empty tensors, and a later run ends the process.
    engine = OpenVinoEngine(bundle, threads=2, fp32=True)
    told = "stage 'attn_prompter' failed in openvino-fp32: .*coarse"
    with pytest.raises(RSRefSegError, match=told) as refusal, Segmenter(bundle, engine) as segmenter:
        segmenter.segment(np.zeros((40, 60, 3), np.uint8), ["the red"])
    assert "\n" not in str(refusal.value)


def test_without_openvino_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPartError, match=r"openvino is not installed: pip install 'rsrefseg\[openvino\]'"):
        select_backend(Backend.OPENVINO, bundle)
    ability = next(ability for ability in examine().abilities if "(openvino)" in ability.name)
    assert not ability.works
    assert "rsrefseg[openvino]" in ability.detail


def test_auto_never_trades_exactness_for_speed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_backend("auto", bundle).engine.name == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert select_backend("auto", bundle).engine.name == "openvino-fp32"


def test_a_processor_without_bf16_computes_in_fp32(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "computes_bf16", lambda: False)
    with OpenVinoEngine(bundle) as engine:
        assert {engine.precision_of(stage) for stage in Stage} == {"fp32"}
        assert engine.provider_of(Stage.SAM_ENCODER).endswith("CPU, FP32")


def test_importing_it_leaves_nothing_in_the_home_folder_and_sends_nothing(folder: Path, tmp_path: Path) -> None:
    code = """
        import socket, sys
        import urllib.request
        def refuse(*_, **__): raise SystemExit("a connection was tried")
        socket.socket.connect = socket.create_connection = urllib.request.urlopen = refuse
        from rsrefseg import Segmenter
        import numpy as np
        with Segmenter.open(sys.argv[1], "openvino") as segmenter:
            segmenter.segment(np.zeros((40, 60, 3), np.uint8), ["the red"])
        assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
        import openvino_telemetry  # whoever wants it still gets it
        print("done")
    """
    assert_done(code, folder, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(
    "leave",
    [
        "first.close(); del first; second.close(); del second",
        "second.close(); del second; last = [first]; del first; elsewhere(last.clear)",
    ],
    ids=["in the order of opening", "on another thread"],
)
def test_a_signal_after_engines_are_gone_is_handled(folder: Path, tmp_path: Path, leave: str) -> None:
    code = f"""
        import os, signal, sys, threading
        from rsrefseg.engines.bundle.bundle import Bundle
        from rsrefseg.engines.bundle.contracts import Stage
        from rsrefseg.engines.openvino.engine import OpenVinoEngine
        signal.signal(signal.SIGUSR1, lambda *_: print("done"))
        first, second = (OpenVinoEngine(Bundle.open(sys.argv[1]), threads=1) for _ in range(2))
        first.load(Stage.SAM_DECODER), second.load(Stage.SAM_DECODER)
        def elsewhere(work):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        {leave}
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    assert_done(code, folder, tmp_path)


def test_threads_that_read_constants_first_do_not_wait_for_each_other_for_ever(folder: Path, tmp_path: Path) -> None:
    """Python changes threads at every turn here, so that what hung one first load in seven hung every time."""
    code = """
        import sys, threading
        from pathlib import Path
        from rsrefseg.engines.openvino.library import core
        graph = core().read_model(Path(sys.argv[1]) / "siglip_text.onnx")
        constants = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"][:4]
        together = threading.Barrier(len(constants))
        def read(constant):
            together.wait()
            constant.data
        threads = [threading.Thread(target=read, args=(constant,), daemon=True) for constant in constants]
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("done")
    """
    assert_done(code, folder, tmp_path)


def assert_done(code: str, bundle: Path, home: Path) -> None:
    """A process of its own runs the code on the bundle, says that it is done and leaves well."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), bundle],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr
