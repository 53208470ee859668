"""Many images in one call: a folder of results for each, a table, bad files, resuming and shards."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio.shutil

from rsrefseg.engines.batch import BatchReport, infer_batch, infer_images
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.infer import InferOptions, InferReport
from rsrefseg.engines.segmenter import Segmenter
from tests.support.batches import PHRASES, batch_job, table, write_scenes, written
from tests.support.killing import Moment, run_job
from tests.support.rasters import colour_bands, write_raster

OPTIONS = InferOptions("onnxruntime")
Run = Callable[..., BatchReport]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six scenes. Read-only."""
    return write_scenes(tmp_path_factory.mktemp("batch") / "scenes", 6)


@pytest.fixture
def run(folder: Path, scenes: Path, tmp_path: Path) -> Run:
    """Run a batch on the scenes."""

    def run(images: Path | None = None, options: InferOptions = OPTIONS, **others: object) -> BatchReport:
        arguments = {"phrases": PHRASES, "bundle": folder, "out": tmp_path / "out", "options": options} | others
        return infer_batch([str(images or scenes)], **arguments)  # type: ignore[arg-type]

    return run


def test_each_image_has_a_folder_and_each_phrase_a_row(run: Run, scenes: Path, tmp_path: Path) -> None:
    report, out = run(), tmp_path / "out"
    assert (report.images, report.resumed, report.failed, report.failure) == (6, 0, (), "")
    rows = table(report.table)
    images = sorted(str(path) for path in scenes.rglob("*.*"))
    assert [(row["image"], row["phrase"]) for row in rows] == [(image, one) for image in images for one in PHRASES]
    assert len({row["json_file"] for row in rows}) == 6
    for row in rows:
        document = json.loads((out / row["json_file"]).read_text())
        result = document["results"][PHRASES.index(row["phrase"])]
        assert document["source"] == row["image"]
        assert int(row["area_px"]) == result["area_px"]
        assert (out / row["mask_file"]).is_file()
        assert (out / row["overlay_file"]).is_file()
        assert row["mask_band"] == str(result.get("mask_band", ""))
        assert [row[name] for name in ("x1", "y1", "x2", "y2")] == list(map(str, result["box"] or [""] * 4))
        assert float(row["seconds"]) > 0
    assert any(int(row["area_px"]) for row in rows)


def test_results_are_those_of_single_calls(run: Run, scenes: Path, folder: Path, tmp_path: Path) -> None:
    run()
    for path in sorted(scenes.rglob("*.*")):
        place = path.relative_to(scenes)
        single = infer_images(
            [str(path), *PHRASES], bundle=folder, out=tmp_path / "single" / place, backend="onnxruntime"
        )
        assert isinstance(single, InferReport)
        batched = tmp_path / "out" / place
        assert sorted(entry.name for entry in batched.iterdir()) == sorted(file.name for file in single.files)
        for file in single.files:
            assert (batched / file.name).read_bytes() == file.read_bytes()


def test_bad_files_are_reported_and_skipped(run: Run, scenes: Path, tmp_path: Path) -> None:
    copies = Path(shutil.copytree(scenes, tmp_path / "copies"))
    first, second, *_ = sorted(copies.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:60])
    second.write_text("not an image")
    report = run(copies)
    assert [name for name, _ in report.failed] == [str(first), str(second)]
    assert "2 of 6" in report.failure
    failed = [row for row in table(report.table) if row["error"]]
    assert [row["image"] for row in failed] == [str(first), str(first), str(second), str(second)]
    shutil.copytree(scenes, copies, dirs_exist_ok=True)
    again = run(copies, resume=True)
    assert (again.resumed, again.failure) == (4, "")
    assert not any(row["error"] for row in table(again.table))


def test_resume_redoes_what_changed_and_nothing_else(
    run: Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Path(shutil.copytree(scenes, tmp_path / "copies"))
    before, rows = run(copies), table(tmp_path / "out/results.csv")
    assert before.backend
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "open", None)  # nothing is left to do
        assert run(copies, resume=True).resumed == 6
    assert table(tmp_path / "out/results.csv") == rows, "seconds are kept"
    image, other, third, fourth = sorted(copies.rglob("*.png"))[:4]
    os.utime(fourth, (2**33, 2**33))  # the same content
    shutil.copy2(scenes / fourth.relative_to(copies), image)
    os.utime(image, (0, 0))  # replaced by an older file
    next((tmp_path / "out" / other.relative_to(copies)).glob("*_overlay.png")).unlink()
    next((tmp_path / "out" / third.relative_to(copies)).glob("*.json")).write_text("{")
    assert run(copies, resume=True).resumed == 3
    run(copies)
    assert run(copies, resume=True, options=InferOptions("onnxruntime", tile="20")).resumed == 0
    assert run(copies, resume=True, phrases=PHRASES[:1]).resumed == 0
    assert run(copies, resume=False).resumed == 0


def test_resume_redoes_a_vrt_whose_files_changed(run: Run, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "source.tif", colour_bands(40)).path
    (scenes := tmp_path / "mosaics").mkdir()
    rasterio.shutil.copy(source, scenes / "mosaic.vrt", driver="VRT")
    assert run(scenes).images == 1
    assert run(scenes, resume=True).resumed == 1
    os.utime(source, (2**33, 2**33))
    assert run(scenes, resume=True).resumed == 0


@pytest.mark.parametrize("options", [{"backend": "x"}, {"threshold": 1.0}, {"absent_below": 0.5}])
def test_a_refused_option_keeps_an_earlier_table(run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    run()
    before = (tmp_path / "out/results.csv").read_bytes()
    with pytest.raises(BadInputError):
        run(options=InferOptions(**{"backend": "onnxruntime"} | options))
    assert (tmp_path / "out/results.csv").read_bytes() == before


def test_shards_write_tables_of_their_own(run: Run, tmp_path: Path) -> None:
    reports = [run(shard=f"{part}/4") for part in range(1, 5)]
    assert [report.images for report in reports] == [2, 2, 1, 1]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == [
        f"results-{part}-of-4.csv" for part in range(1, 5)
    ]
    assert run(resume=True).resumed == 6


def test_a_killed_batch_resumes_to_the_same_files_and_table(scenes: Path, folder: Path, tmp_path: Path) -> None:
    job = {"scenes": str(scenes), "bundle": str(folder), "out": str(tmp_path / "whole")}
    changes = run_job(batch_job, job, tmp_path / "whole")
    assert changes is not None
    expected = written(tmp_path / "whole")
    job |= {"out": str(out := tmp_path / "out")}
    for moment in (Moment(changes // 3), Moment(changes // 2), Moment(changes - 3)):
        assert run_job(batch_job, job, out, moment) is None
        run_job(batch_job, job | {"resume": True}, out)
        assert written(out) == expected, moment
        shutil.rmtree(out)


def test_phrases_and_options_are_checked_before_any_image(run: Run, tmp_path: Path, scenes: Path) -> None:
    options = ({"tile": "x"}, {"stretch": "x"}, {"probability": "x"}, {"min_area": "x"})
    bad = [{"options": InferOptions("onnxruntime", **one)} for one in options]
    for wrong in (*bad, {"phrases": ("the red square", "")}, {"phrases": ("🚢",)}, {"shard": "9/8"}):
        with pytest.raises(BadInputError):
            run(**wrong)
    with pytest.raises(BadInputError, match="--ray"):
        infer_images([str(scenes), "x"], bundle=None, out=tmp_path, actors=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.csv").write_text("name;phone\n")
    with pytest.raises(BadInputError, match=r"results\.csv"):
        run()
    assert (tmp_path / "out/results.csv").read_text() == "name;phone\n"
