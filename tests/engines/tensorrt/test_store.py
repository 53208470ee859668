"""Engines lie in the user's cache folder, are used only for what they were built from, and say why they are stale."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from rsrefseg.engines.bundle.bundle import Bundle, file_record
from rsrefseg.engines.bundle.contracts import Dim, Stage, stage_contracts
from rsrefseg.engines.bundle.manifest import AttentionRecord
from rsrefseg.engines.errors import BundleError, MissingPartError
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.engine import TensorRTEngine
from rsrefseg.engines.tensorrt.store import RECORD_NAME, BuildReport
from tests.engines.tensorrt.conftest import build
from tests.support.commands import assert_refused, run_here
from tests.support.doubles.tensorrt_double import VERSIONS, State, doubled
from tests.support.made_bundle import PHRASES, change_stage
from tests.support.places import Capsys

VERSION = VERSIONS[0]
NEW = dict.fromkeys(map(str, Stage), ("it has no engine yet",))


def engine_file(cache: Path, stage: Stage) -> Path:
    (path,) = cache.glob(f"engines/*/{stage}-*.engine")
    return path


def reasons(report: BuildReport) -> dict[str, tuple[str, ...]]:
    return {str(stage): one.reasons for stage, one in report.stages.items() if one.reasons}


def segment(bundle: Path) -> None:
    with Segmenter(Bundle.open(bundle), TensorRTEngine(Bundle.open(bundle))) as segmenter:
        segmenter.segment(np.zeros((40, 60, 3), np.uint8), PHRASES[:1])


def other_graph(folder: Path, stage: Stage) -> None:
    model = onnx.load(folder / f"{stage}.onnx")
    model.producer_name = "somebody else"
    change_stage(folder, stage, model)


def test_building_says_that_the_bundle_was_exported_for_another_runtime(
    trt: State, folder: Path, capsys: Capsys
) -> None:
    assert "exported for" not in run_here(capsys, "build", "--bundle", folder).err
    change_stage(folder, Stage.SAM_ENCODER, attention=AttentionRecord("folded", "folded", 1, "onnxruntime", "by hand"))
    assert "exported for onnxruntime" in run_here(capsys, "build", "--bundle", folder).err


def test_current_engines_are_kept_and_the_bundle_is_not_touched(trt: State, folder: Path, cache: Path) -> None:
    bundle = sorted(folder.rglob("*"))
    assert reasons(build(folder)) == NEW
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.engine")}
    assert reasons(build(folder)) == {}
    segment(folder)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.engine")} == before
    assert len(trt.built) == 5
    assert sorted(folder.rglob("*")) == bundle
    layers = engine_file(cache, Stage.SAM_DECODER).with_name("sam_decoder.layers.json")
    assert json.loads(layers.read_text())["Layers"]
    assert reasons(build(folder, "sam_decoder", force=True)) == {"sam_decoder": ("requested with --force",)}


def test_opening_builds_what_is_missing_and_says_so(trt: State, folder: Path, capsys: Capsys) -> None:
    build(folder, "sam_encoder, siglip_text,attn_prompter,sam_decoder")
    assert trt.built == ["siglip_text", "attn_prompter", "sam_encoder", "sam_decoder"]
    capsys.readouterr()
    segment(folder)
    assert trt.built[4:] == ["siglip_vision"]
    assert "building siglip_vision: it has no engine yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "changes", "driver", "expected"),
    [
        ("10.13.2.6", {}, 13000, "TensorRT 10.9.0.34 -> 10.13.2.6"),
        (VERSION, {}, 13010, "driver CUDA 13.0 -> CUDA 13.1"),
        (VERSION, {"multiProcessorCount": 8}, 13000, "it has no engine yet"),
    ],
)
def test_on_another_platform_engines_are_built_again_with_the_reason(
    folder: Path, cache: Path, version: str, changes: dict, driver: int, expected: str, capsys: Capsys
) -> None:
    with doubled(VERSION):
        build(folder, optimization_level=4)
    capsys.readouterr()
    with doubled(version) as now:
        now.cuda.properties, now.cuda.driver = replace(now.cuda.properties, **changes), driver
        segment(folder)
        assert len(now.built) == 5
        assert now.deserialized == 10, "each once to look at and once to run, the old ones never"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("building")]
    assert lines == [f"building {stage}: {expected}" for stage in Stage]
    folders = [json.loads(path.read_bytes()) for path in cache.glob(f"engines/*/{RECORD_NAME}")]
    assert len(folders) == 1 + bool(changes), "engines for another GPU stay, others are replaced"
    levels = {one["options"]["optimization_level"] for records in folders for one in records.values()}
    assert levels == {3, 4} if changes else {4}, "as chosen before for this GPU"


def test_other_options_build_again_and_stay(trt: State, folder: Path) -> None:
    build(folder, workspace_mib=100)
    report = build(folder, workspace_mib=200, optimization_level=5)
    expected = ("option workspace_mib 100 -> 200", "option optimization_level 3 -> 5")
    assert reasons(report) == dict.fromkeys(map(str, Stage), expected)
    assert reasons(build(folder)) == {}


def test_a_changed_graph_contract_or_precision_builds_its_stage_again(trt: State, folder: Path) -> None:
    build(folder)
    bundle = Bundle.open(folder)
    fewer = stage_contracts(bundle.manifest.geometry, phrases=Dim("phrases", 1, 2, 8))[Stage.SIGLIP_TEXT]
    other_graph(folder, Stage.SAM_DECODER)
    change_stage(folder, Stage.SIGLIP_TEXT, contract=fewer)
    change_stage(folder, Stage.ATTN_PROMPTER, precision="fp16")
    before = bundle.manifest.stages[Stage.SAM_DECODER].graph.sha256
    after = file_record(folder / "sam_decoder.onnx").sha256
    expected = reasons(build(folder, "siglip_text,sam_decoder"))
    assert expected["sam_decoder"] == (f"graph file sam_decoder.onnx {before[:12]}... -> {after[:12]}...",)
    assert expected["siglip_text"][0].startswith("contract ")
    with pytest.raises(MissingPartError, match=r"attn_prompter .*precision fp32 -> fp16"):
        TensorRTEngine(Bundle.open(folder), build=False)


def test_bundles_leave_the_engines_of_others(trt: State, folder: Path) -> None:
    build(folder)
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    assert reasons(build(copy)) == NEW
    for bundle in (folder, copy):
        assert reasons(build(bundle)) == {}


def test_a_bundle_from_elsewhere_brings_no_engines(trt: State, folder: Path, cache: Path) -> None:
    build(folder)
    (cache / "engines").rename(folder / "engines")
    with pytest.raises(MissingPartError, match="it has no engine yet"):
        TensorRTEngine(Bundle.open(folder), build=False)
    for path in folder.rglob("*.engine"):
        path.write_bytes(b"native code of somebody else")
    segment(folder)  # the double breaks the test if that code reaches it
    assert len(trt.built) == 10


@pytest.mark.parametrize("spoil", ["changed", "cut short", "removed"])
def test_a_spoiled_engine_is_never_loaded_and_build_replaces_it(
    trt: State, folder: Path, cache: Path, spoil: str
) -> None:
    build(folder)
    path = engine_file(cache, Stage.SAM_ENCODER)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] if spoil == "cut short" else data[:middle] + b"\0" + data[middle + 1 :])
    if spoil == "removed":
        path.unlink()
    loaded = trt.deserialized
    if spoil == "changed":
        with pytest.raises(BundleError, match=rf"'{path}' .*: build it again with"):
            segment(folder)
        assert trt.deserialized <= loaded + 1, "SigLIP's at most, never the changed one"
    else:
        with pytest.raises(MissingPartError, match=r"sam_encoder .*missing or incomplete"):
            TensorRTEngine(Bundle.open(folder), build=False)
    assert list(reasons(build(folder))) == ["sam_encoder"]
    segment(folder)


@pytest.mark.parametrize("content", [b"\xff", b"{}", b"[" * 100_000])
def test_an_unreadable_record_is_of_engines_to_build_again(
    trt: State, folder: Path, cache: Path, content: bytes
) -> None:
    build(folder)
    (engine_file(cache, Stage.SIGLIP_TEXT).parent / RECORD_NAME).write_bytes(content)
    assert reasons(build(folder)) == NEW
    segment(folder)


def test_a_cache_folder_that_cannot_be_is_named(trt: State, folder: Path, cache: Path, capsys: Capsys) -> None:
    cache.parent.write_text("a file")
    assert_refused(run_here(capsys, "build", "--bundle", folder), "XDG_CACHE_HOME")
    assert trt.built == []


def test_timings_are_kept_and_unusable_ones_replaced(trt: State, folder: Path, cache: Path) -> None:
    build(folder, "siglip_text")
    (path,) = (cache / "timing").glob("*.cache")
    assert path.name == "10.9.0.34-Double_of_a_GPU-8.7-16.cache"
    path.write_bytes(b"no timings")
    build(folder, "sam_encoder")
    assert path.read_bytes() != b"no timings"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--stages", "sam"), "unknown stage 'sam': known are siglip_vision"),
        (("--optimization-level", "6"), "the optimisation level must be 0 to 5, got 6"),
        (("--workspace-mib", "0"), "the workspace must be at least 1 MiB, got 0"),
    ],
)
def test_arguments_are_checked_first(
    trt: State, folder: Path, cache: Path, arguments: tuple[str, ...], expected: str, capsys: Capsys
) -> None:
    assert_refused(run_here(capsys, "build", "--bundle", folder, *arguments), expected)
    assert not cache.exists()
