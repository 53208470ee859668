"""Engines are used only where they were built, from the graphs they were built from, and say why when they are not."""

import hashlib
import hmac
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs

from rsrefseg.engines.bundle.bundle import Bundle, file_record
from rsrefseg.engines.bundle.contracts import Dim, Stage, stage_contracts
from rsrefseg.engines.errors import BundleError, MissingPartError
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.engine import TensorRTEngine
from rsrefseg.engines.tensorrt.library import Library
from rsrefseg.engines.tensorrt.records import RECORD_NAME, StoredEngine, stored_engines
from rsrefseg.engines.tensorrt.store import BuildReport, build_bundle, find_engine
from tests.support.commands import assert_refused, run_here
from tests.support.doubles.tensorrt_double import State, doubled, files_below
from tests.support.killing import Moment, run_job
from tests.support.made_bundle import PHRASES, make_bundle

VERSION = "10.9.0.34"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsrefseg"


@pytest.fixture
def trt() -> Iterator[State]:
    with doubled(VERSION) as state:
        yield state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle").root


def engine_folder(bundle: Path, stage: Stage) -> Path:
    (path,) = bundle.glob(f"engines/*/{stage}.engine")
    return path.parent


def reasons(report: BuildReport) -> dict[str, tuple[str, ...]]:
    return {str(stage.stage): stage.reasons for stage in report.stages if stage.reasons}


def segment(bundle: Path) -> None:
    with Segmenter(Bundle.open(bundle), TensorRTEngine(Bundle.open(bundle))) as segmenter:
        segmenter.segment(np.zeros((40, 60, 3), np.uint8), PHRASES[:1])


def test_what_is_current_is_kept(trt: State, folder: Path) -> None:
    assert reasons(build_bundle(folder)) == {str(stage): ("it has no engine yet",) for stage in Stage}
    before = {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)}
    assert reasons(build_bundle(folder)) == {}
    segment(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)} == before
    assert len(trt.built) == 5


def test_some_stages_alone_and_by_force(trt: State, folder: Path) -> None:
    build_bundle(folder, "sam_decoder, siglip_text")
    assert trt.built == ["siglip_text", "sam_decoder"]
    assert reasons(build_bundle(folder, "sam_decoder", force=True)) == {"sam_decoder": ("asked for with --force",)}


def test_opening_builds_what_is_missing_and_says_so(
    trt: State, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(folder, "siglip_text,attn_prompter,sam_encoder,sam_decoder")
    capsys.readouterr()
    segment(folder)
    assert trt.built[-1] == "siglip_vision"
    assert "building siglip_vision: it has no engine yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "changes", "driver", "told"),
    [
        ("10.13.2.6", {}, 13000, "TensorRT 10.9.0.34 -> 10.13.2.6"),
        (VERSION, {}, 13010, "driver CUDA 13.0 -> CUDA 13.1"),
        (VERSION, {"name": b"Another GPU"}, 13000, "GPU Double of a GPU -> Another GPU"),
        (VERSION, {"minor": 9}, 13000, "compute capability 8.7 -> 8.9"),
        (VERSION, {"multiProcessorCount": 8}, 13000, "multiprocessors 16 -> 8"),
    ],
)
def test_on_another_platform_engines_are_built_anew_with_the_reason(
    folder: Path, version: str, changes: dict, driver: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with doubled(VERSION):
        build_bundle(folder, optimization_level=4)
    capsys.readouterr()
    with doubled(version) as now:
        now.cuda.properties, now.cuda.driver = replace(now.cuda.properties, **changes), driver
        segment(folder)
        assert len(now.built) == 5
        assert now.deserialized == 10, "each once to look at and once to run, the old ones never"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("building")]
    assert lines == [f"building {stage}: {told}" for stage in Stage]
    current = [one for one in stored_engines(Bundle.open(folder)) if isinstance(one, StoredEngine)]
    assert {one.record.fingerprint.options["optimisation level"] for one in current} == {"4"}, "as chosen before"
    assert len(current) == (10 if changes else 5), "engines for another GPU stay, superseded ones go"


def test_other_options_build_anew_and_stay(trt: State, folder: Path) -> None:
    build_bundle(folder, workspace_mib=100)
    report = build_bundle(folder, workspace_mib=200, optimization_level=5)
    told = ("option workspace MiB 100 -> 200", "option optimisation level 3 -> 5")
    assert reasons(report) == dict.fromkeys(map(str, Stage), told)
    assert reasons(build_bundle(folder)) == {}
    assert len(files_below(folder / "engines")) == 5 * 3 + 1


def test_a_graph_that_changed_builds_its_stage_anew(trt: State, folder: Path) -> None:
    build_bundle(folder)
    bundle = Bundle.open(folder)
    record = bundle.manifest.stages[Stage.SAM_DECODER]
    path = folder / record.graph.name
    model = onnx.load(path)
    model.producer_name = "somebody else"
    onnx.save(model, path)
    stages = {**bundle.manifest.stages, Stage.SAM_DECODER: structs.replace(record, graph=file_record(path))}
    Bundle.write_manifest(folder, structs.replace(bundle.manifest, stages=stages))
    ((stage, (told,)),) = reasons(build_bundle(folder)).items()
    assert stage == "sam_decoder"
    digests = f"{record.graph.sha256[:12]}... -> {file_record(path).sha256[:12]}..."
    assert told == f"graph file sam_decoder.onnx {digests}"


def test_other_bounds_or_another_precision_build_a_stage_anew(trt: State, folder: Path) -> None:
    build_bundle(folder)
    bundle = Bundle.open(folder)
    record = bundle.manifest.stages[Stage.SIGLIP_TEXT]
    fewer = stage_contracts(bundle.manifest.geometry, phrases=Dim("phrases", 1, 2, 8))[Stage.SIGLIP_TEXT]
    for changed, told in (
        (structs.replace(record, contract=fewer), "contract "),
        (structs.replace(record, precision="fp16"), "precision"),
    ):
        stages = {**bundle.manifest.stages, Stage.SIGLIP_TEXT: changed}
        Bundle.write_manifest(folder, structs.replace(bundle.manifest, stages=stages))
        ((stage, (first, *_)),) = reasons(build_bundle(folder)).items()
        assert stage == "siglip_text"
        assert told in first


@pytest.mark.parametrize("suffix", ["engine", "layers.json"])
def test_a_changed_byte_is_refused_by_name_and_build_mends_it(
    trt: State, folder: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(folder)
    path = engine_folder(folder, Stage.SAM_ENCODER) / f"sam_encoder.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    loaded = trt.deserialized
    with pytest.raises(BundleError, match=f"'{path}' was changed after it was built: build it again with"):
        segment(folder)
    assert trt.deserialized <= loaded + 1, "SigLIP's at most, never the changed one"
    assert reasons(build_bundle(folder)) == {"sam_encoder": (f"'{path}' was changed after it was built",)}
    segment(folder)


def test_an_engine_file_that_is_gone_is_named(trt: State, folder: Path) -> None:
    build_bundle(folder)
    path = engine_folder(folder, Stage.SAM_DECODER) / "sam_decoder.engine"
    path.unlink()
    with pytest.raises(BundleError, match=f"'{path}' is missing"):
        segment(folder)
    assert list(reasons(build_bundle(folder))) == ["sam_decoder"]


def test_a_bundle_from_elsewhere_brings_no_engines(
    trt: State, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(folder)
    shutil.rmtree(cache)  # another user, another machine
    capsys.readouterr()
    segment(folder)
    assert len(trt.built) == 10
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("building")]
    assert len(told) == 5
    assert all("its record.json was not made on this machine, or was changed" in line for line in told)


@pytest.mark.parametrize("sealed_with", [None, b"", b"guessed" * 8])
def test_a_forged_record_does_not_make_an_engine_run(trt: State, folder: Path, sealed_with: bytes | None) -> None:
    """Native code, with a record whose digests fit it, in the place of a real engine."""
    build_bundle(folder)
    place = engine_folder(folder, Stage.SAM_DECODER)
    (place / "sam_decoder.engine").write_bytes(b"native code")
    record = json.loads((place / RECORD_NAME).read_text())
    seal = record.pop("seal")
    for file in record["files"]:
        data = (place / file["name"]).read_bytes()
        file |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    if sealed_with is not None:
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        seal = hmac.new(sealed_with, canonical, hashlib.sha256).hexdigest()
    (place / RECORD_NAME).write_text(json.dumps({**record, "seal": seal}))
    with pytest.raises(MissingPartError, match="not made on this machine, or was changed"):
        TensorRTEngine(Bundle.open(folder), build=False)
    segment(folder)  # the double breaks the test if the native code reaches it
    assert trt.built.count("sam_decoder") == 2


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"seal": 3}', b"[" * 100_000])
def test_a_record_that_is_none_is_no_crash(trt: State, folder: Path, content: bytes) -> None:
    build_bundle(folder, "siglip_text")
    (engine_folder(folder, Stage.SIGLIP_TEXT) / RECORD_NAME).write_bytes(content)
    ((told,),) = reasons(build_bundle(folder, "siglip_text")).values()
    assert "not made on this machine, or was changed" in told


def test_a_secret_that_others_can_read_is_replaced(trt: State, folder: Path, cache: Path) -> None:
    build_bundle(folder)
    key = cache / "engines.key"
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    key.chmod(0o644)
    assert len(reasons(build_bundle(folder))) == 5
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_cache_folder_that_cannot_be_is_named(trt: State, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MissingPartError, match=r"set XDG_CACHE_HOME to a folder that can be written"):
        build_bundle(folder)
    assert trt.built == []
    assert files_below(folder / "engines") == []


def test_a_broken_timing_cache_is_made_anew_with_a_note(
    trt: State, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(folder)
    (path,) = (cache / "timing").iterdir()
    assert path.name == "Double_of_a_GPU-8.7-16sm-10.9.0.34.cache"
    whole = path.read_bytes()
    for broken in (whole[:-1], b"", whole[:40] + b"x" + whole[41:]):
        path.write_bytes(broken)
        capsys.readouterr()
        build_bundle(folder, "sam_encoder", force=True)
        assert f"the timing cache '{path}' is broken and is made anew" in capsys.readouterr().err
        capsys.readouterr()
        build_bundle(folder, "sam_encoder", force=True)
        assert "timing cache" not in capsys.readouterr().err, "it is whole again"


def test_timings_that_tensorrt_refuses_are_replaced(
    trt: State, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.version = "10.8.0.43"
    build_bundle(folder, "siglip_text")
    trt.version = VERSION
    (old,) = (cache / "timing").iterdir()
    old.rename(old.with_name("Double_of_a_GPU-8.7-16sm-10.9.0.34.cache"))
    build_bundle(folder, "sam_encoder")
    assert "is discarded" in capsys.readouterr().err
    build_bundle(folder, "sam_decoder")
    assert "is discarded" not in capsys.readouterr().err
    (path,) = (cache / "timing").iterdir()
    assert len(json.loads(path.read_bytes()[32:])["entries"]) == 2


def test_timings_of_all_builds_are_kept_together(trt: State, folder: Path, cache: Path) -> None:
    build_bundle(folder, "siglip_text")

    def another_build() -> None:
        trt.during_build = lambda: None
        build_bundle(make_bundle(folder.with_name("other")).root, "attn_prompter")

    trt.during_build = another_build
    build_bundle(folder, "sam_decoder")
    (path,) = (cache / "timing").iterdir()
    assert len(json.loads(path.read_bytes()[32:])["entries"]) == 3


def test_timings_of_another_version_are_not_used(folder: Path, cache: Path) -> None:
    for version in (VERSION, "11.4.0.106"):
        with doubled(version):
            build_bundle(folder, "siglip_text")
    assert len(list((cache / "timing").iterdir())) == 2


def test_two_builds_at_once_do_the_work_once(trt: State, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In threads, with the lock that processes use."""
    reports: list[BuildReport] = []
    second = threading.Thread(target=lambda: reports.append(build_bundle(folder)))

    def start_second() -> None:
        trt.during_build = lambda: None
        second.start()
        second.join(0.3)
        assert second.is_alive(), "it waits"

    trt.during_build = start_second
    reports.append(build_bundle(folder))
    second.join()
    assert len(trt.built) == 5
    assert [len(reasons(report)) for report in reports] == [5, 0]
    assert "another build of" in capsys.readouterr().err


def build_job(bundle: str, cache: str) -> None:
    """Build in a process that may be killed."""
    os.environ["XDG_CACHE_HOME"] = cache
    with doubled(VERSION):
        build_bundle(Path(bundle), "sam_decoder", force=True)


def test_a_killed_build_leaves_the_old_engine_or_the_new_one(folder: Path, tmp_path: Path) -> None:
    arguments = {"bundle": str(folder), "cache": str(tmp_path / "cache")}
    with doubled(VERSION):
        build_bundle(folder)
        platform = Library().platform
        changes = run_job(build_job, arguments, folder)
        assert changes is not None
        moments = [Moment(change) for change in range(1, changes + 1)] + [Moment(change, 5) for change in (4, 6)]
        killed = 0
        for moment in moments:
            killed += run_job(build_job, arguments, folder, moment) is None
            found = find_engine(Bundle.open(folder), Stage.SAM_DECODER, platform)
            assert found.engine is not None, moment
            found.engine.read()
        assert killed >= changes
        build_bundle(folder, "sam_decoder", force=True)
    left = {Path(name).name for name in files_below(folder / "engines")}
    assert left == {".build.lock", RECORD_NAME, *(f"{s}.{kind}" for s in Stage for kind in ("engine", "layers.json"))}


def test_a_bundle_with_engines_is_exported_over_like_any_other(trt: State, folder: Path) -> None:
    from rsrefseg.engines.bundle.manifest import MANIFEST_NAME
    from rsrefseg.engines.system.files import atomic_directory
    from rsrefseg.export.export import check_destination

    build_bundle(folder)
    check_destination(folder)
    with atomic_directory(folder, MANIFEST_NAME) as fresh:
        make_bundle(fresh)
    assert not (folder / "engines").exists()
    Bundle.open(folder)


def test_a_bundle_that_cannot_be_written_is_named_in_one_line(
    trt: State, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "engines").write_text("a file where the folder belongs")
    ran = run_here(capsys, "build", "--bundle", folder)
    assert_refused(ran, "cannot write", "engines")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--stages", "sam"), "unknown stage 'sam': known are siglip_vision"),
        (("--optimization-level", "6"), "the optimisation level must be 0 to 5, got 6"),
        (("--workspace-mib", "0"), "the workspace must be at least 1 MiB, got 0"),
    ],
)
def test_arguments_are_checked_first(
    trt: State, folder: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(run_here(capsys, "build", "--bundle", folder, *arguments), told)
    assert not (folder / "engines").exists()
