"""NVIDIA's own parser and compiler take the graphs, and say which attentions become one kernel: without a GPU."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import IMAGES, Dim, Stage, stage_contracts
from rsrefseg.engines.errors import BadInputError, BundleError, MissingPartError, RSRefSegError
from rsrefseg.engines.tensorrt.check import CompileReport, check_compilation
from rsrefseg.engines.tensorrt.gpus import parse_gpus
from rsrefseg.engines.tensorrt.library import open_rtx
from rsrefseg.engines.tensorrt.store import RECORD_NAME, StoredEngine, build_portable, open_portable
from rsrefseg.export import export
from rsrefseg.export.export import export_run
from rsrefseg.export.settings import ExportSettings, Target
from tests.support.attention_graphs import NODE, bundle_with_attention
from tests.support.commands import assert_refused, run_here
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.made_bundle import change_stage, make_bundle
from tests.support.places import Capsys

TARGETS = ("sm80", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def half(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real export in half precision, with attention that fuses."""
    settings = ExportSettings({}, Target.TENSORRT, "windowed=additive,global=additive")
    return Bundle.open(export_run(exported.run, tmp_path_factory.mktemp("half") / "bundle", settings).bundle)


def check(folder: Path, *gpus: str, stage: Stage = Stage.SIGLIP_VISION) -> CompileReport:
    return check_compilation(Bundle.open(folder), (stage,), gpus or ("sm86",))


def test_attentions_of_a_half_precision_export_are_one_kernel_each(half: Bundle) -> None:
    """But for the decoder's cross-attentions: in this small model their heads have 8 channels, which is too few."""
    report = check_compilation(half, tuple(Stage), TARGETS)
    fused = {one.stage: (one.fused, one.attentions) for one in report.stages}
    assert fused.pop(Stage.SAM_DECODER) == (2, 7)
    assert report.failure == report.stages[-1].fault
    assert "cross_attn" in (report.failure or "")
    assert all(count == total for count, total in fused.values())
    assert {stage: count > 0 for stage, (count, _) in fused.items()} == {
        stage: stage is not Stage.ATTN_PROMPTER for stage in fused
    }
    assert all(one.layers > 20 and one.engine_mib > 0 for one in report.stages)


def test_a_single_precision_export_compiles_and_fuses_nothing(exported: Exported, half: Bundle) -> None:
    report = check_compilation(Bundle.open(exported.bundle), tuple(Stage), ("sm89",))
    assert report.failure is None
    assert [(one.half, one.fused) for one in report.stages] == [(0, 0)] * 5
    assert sum(one.attentions for one in report.stages) > 10, "they are counted all the same"


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize("gpu", TARGETS)
def test_one_attention(tmp_path: Path, gpu: str, operator: bool) -> None:
    """As a softmax between two products, and as ONNX's Attention."""
    (found,) = check(bundle_with_attention(tmp_path / "bundle", operator=operator), gpu).stages
    assert (found.attentions, found.half, found.fused, found.fault) == (1, 1, 1, None)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"value_width": 24}, ("1 of 1 attentions", NODE)),
        ({"fault": "operator"}, ("could not parse", "block.attn/strange", "Strange")),
        ({"fault": "float64"}, ("block.attn/wide", "float64")),
    ],
    ids=["unequal head dimensions", "unknown operator", "float64 constant"],
)
def test_a_planted_fault_fails_the_check_and_names_stage_and_node(
    tmp_path: Path, options: dict, facts: tuple[str, ...], capsys: Capsys
) -> None:
    folder = bundle_with_attention(tmp_path / "bundle", **options)
    ran = run_here(capsys, "build", "--check", "--bundle", folder, "--stages", "siglip_vision,siglip_text", "--json")
    assert ran.code == 1
    for fact in ("stage 'siglip_vision'", *facts):
        assert fact in ran.err
    faults = [stage["fault"] for stage in json.loads(ran.out)["stages"]]
    assert faults[0]
    assert faults[1] is None


@pytest.fixture
def quick_export(half: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the graphs of ``half`` instead of exporting them."""
    monkeypatch.setattr(export, "export_graph", Shortcut(half.root))


@pytest.mark.usefixtures("quick_export")
def test_an_export_for_tensorrt_is_compiled_unless_told_not_to(
    exported: Exported, tmp_path: Path, capsys: Capsys
) -> None:
    """The check fails on the small decoder; the bundle is written all the same."""
    options = ("export", exported.run, "--fp16", "--out", tmp_path / "bundle", "--json")
    ran = run_here(capsys, *options)
    assert ran.code == 1
    assert "stage 'sam_decoder'" in ran.err
    document = json.loads(ran.out)
    assert [one["stage"] for one in document["compile_check"]["stages"]] == [str(stage) for stage in Stage]
    assert Bundle.open(Path(document["bundle"])).manifest.stages[Stage.SAM_DECODER].precision == "fp16"
    for more in (("--no-check",), ("--target", "onnxruntime")):
        ran = run_here(capsys, *options, *more)
        assert (ran.code, json.loads(ran.out)["compile_check"]) == (0, None), ran.err


@pytest.mark.usefixtures("quick_export")
def test_without_the_compiler_only_a_wanted_check_fails(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    options = ("export", exported.run, "--fp16", "--out", tmp_path / "bundle")
    assert_refused(run_here(capsys, *options, "--check"), "rsrefseg[tensorrt-rtx]")
    assert not (tmp_path / "bundle").exists()
    assert run_here(capsys, *options).code == 0


def test_a_check_for_another_target_is_refused(capsys: Capsys) -> None:
    assert_refused(run_here(capsys, "export", "--base", "--check"), "--check", "--target tensorrt")


def test_the_memory_of_the_engines_grows_with_their_largest_batch(half: Bundle, tmp_path: Path) -> None:
    """Activations are those of the largest sizes in the contract; the report adds what lies in memory together."""
    stages = (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER)
    report = check_compilation(half, stages, ("sm86",))
    vision, text, sam = report.stages
    expected = sum(one.engine_mib for one in report.stages) + max(vision.activation_mib, text.activation_mib)
    assert report.memory_mib == pytest.approx(expected + sam.activation_mib + report.tensor_mib, abs=0.01)
    side, images = half.manifest.geometry.image_size, IMAGES.max
    assert report.tensor_mib > images * 3 * side**2 / 2**20
    single = Path(shutil.copytree(half.root, tmp_path / "single"))
    contract = stage_contracts(half.manifest.geometry, images=Dim("images", 1, 1, 1))[Stage.SIGLIP_VISION]
    change_stage(single, Stage.SIGLIP_VISION, contract=contract)
    (less,) = check(single).stages
    assert 0 < less.activation_mib < vision.activation_mib


def test_a_changed_file_is_an_error_of_the_bundle(tmp_path: Path, capsys: Capsys) -> None:
    folder = bundle_with_attention(tmp_path / "bundle")
    path = folder / "siglip_vision.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    ran = run_here(capsys, "build", "--check", "--bundle", folder, "--stages", "siglip_vision")
    assert ran.code == 2
    assert f"'{path}' was changed" in ran.err


def test_the_same_build_gives_the_same_bytes_and_only_for_its_bundle(
    half: Bundle, tmp_path: Path, cache: Path, capsys: Capsys
) -> None:
    options = ("--bundle", half.root, "--runtime", "tensorrt-rtx", "--gpus", "RTX 4090, sm86")
    for name in ("one", "two"):
        ran = run_here(capsys, "build", *options, "--out", tmp_path / name, "--json")
        assert ran.code == 0, ran.err
        assert {stage["built"] for stage in json.loads(ran.out)["stages"]} == {name == "one"}
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted([RECORD_NAME, *(f"{stage}.engine" for stage in Stage)])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for gpu in ("sm86", "sm89"):
        engines = opened(tmp_path / "one", half, gpu)
        assert all(engines[stage].read() for stage in Stage)
    other = make_bundle(tmp_path / "other")
    with pytest.raises(BundleError, match=rf"of another bundle than '{other.root}' \('siglip_vision'"):
        opened(tmp_path / "one", other)


def opened(folder: Path, bundle: Bundle, gpu: str = "sm86") -> dict[Stage, StoredEngine]:
    return open_portable(folder, bundle, open_rtx().version, gpu)


@pytest.fixture
def built(cache: Path, folder: Path) -> Path:
    """Engines of the made bundle."""
    return Path(build_portable(Bundle.open(folder), ("sm86",), folder.with_name("engines")).out or "")


def test_engines_are_used_only_where_they_run(built: Path, folder: Path) -> None:
    bundle, version = Bundle.open(folder), open_rtx().version
    for other, fact in (((version, "sm89"), "this GPU is sm89"), (("9.9", "sm86"), "this is 9.9")):
        with pytest.raises(MissingPartError, match=fact):
            open_portable(built, bundle, *other)


def spoil_record(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(built: Path) -> None:
        record = json.loads((built / RECORD_NAME).read_bytes())
        change(record)
        (built / RECORD_NAME).write_text(json.dumps(record))

    return spoil


def change_engine(built: Path) -> None:
    path = built / "sam_decoder.engine"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        (lambda built: (built / RECORD_NAME).unlink(), "holds no engine"),
        (lambda built: (built / RECORD_NAME).write_bytes(b"{"), "holds no engine"),
        (spoil_record(lambda record: record.pop("sam_decoder")), "no engine of 'sam_decoder'"),
        (
            spoil_record(lambda record: record["siglip_text"]["parts"].update({"graph file siglip_text.onnx": "0"})),
            "another bundle",
        ),
        (
            spoil_record(lambda record: record["siglip_text"]["parts"].update(contract="0")),
            "another bundle",
        ),
        (change_engine, "sam_decoder.engine' was changed"),
        (lambda built: (built / "sam_decoder.engine").unlink(), "is missing"),
    ],
)
def test_a_spoiled_folder_is_refused(built: Path, folder: Path, spoil: Callable[[Path], None], fact: str) -> None:
    spoil(built)
    with pytest.raises(RSRefSegError, match=fact) as refused:
        opened(built, Bundle.open(folder))[Stage.SAM_DECODER].read()
    assert f"--out {built}" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sm120,sm86", ("sm86", "sm120")),
        ("rtx-4090, NVIDIA GeForce RTX 3060 Ti,L4", ("sm86", "sm89")),
        ("dgx-spark,rtx_5070_ti", ("sm120", "sm121")),
        ("rtx-2050,rtx-2060", ("sm75", "sm86")),
    ],
)
def test_gpus_are_named_by_capability_or_product(text: str, expected: tuple[str, ...]) -> None:
    assert parse_gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("sm87", ("sm87", "on that device")),
        ("Jetson Orin Nano", ("sm87", "on that device")),
        ("sm86,h100", ("sm90", "on that device")),
        ("thor", ("sm110", "on that device")),
        ("rtx-4000", ("unknown GPU 'rtx-4000'",)),
        (" ,", ("names no GPU",)),
    ],
)
def test_what_cannot_be_compiled_for_is_refused_with_the_reason(text: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError) as refused:
        parse_gpus(text)
    assert all(fact in str(refused.value) for fact in facts)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--gpus", "sm86"), "--gpus"),
        (("--out", "engines"), "--out"),
        (("--runtime", "tensorrt-rtx"), "add --gpus"),
        (("--runtime", "tensorrt-rtx", "--gpus", "sm86", "--stages", "sam_encoder"), "--stages"),
        (("--runtime", "tensorrt-rtx", "--gpus", "sm86", "--workspace-mib", "9"), "--workspace-mib"),
        (("--check", "--out", "engines"), "--out"),
        (("--check", "--stages", "sam"), "unknown stage 'sam'"),
        (("--runtime", "rtx"), "unknown runtime 'rtx'"),
    ],
)
def test_options_without_effect_are_refused(options: tuple[str, ...], fact: str, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, "build", *options), fact)


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(run_here(capsys, "build", "--check", "--bundle", folder), "rsrefseg[tensorrt-rtx]")
