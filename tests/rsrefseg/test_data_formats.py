"""Every format: known by its folder, told from its neighbours, sound to the check, and the same as JSON lines."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rsrefseg.data.check import check_dataset
from rsrefseg.data.jsonl import export_jsonl
from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.samples import open_dataset
from tests.support.made_data import refusal, write_scenes
from tests.support.made_formats import write_nwpu, write_refsegrs, write_risbench

WRITERS: dict[str, Callable[[Path], object]] = {
    "RRSIS-D": write_scenes,
    "RefSegRS": write_refsegrs,
    "RISBench": write_risbench,
    "NWPU-Refer": write_nwpu,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_is_known_by_its_folder(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    assert open_dataset(tmp_path / "set").name == name


@pytest.mark.parametrize("name", WRITERS)
def test_a_sound_data_set_has_no_faults(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    report = check_dataset(tmp_path / "set", workers=2)
    assert report.format == name
    assert report.faults == ()
    assert set(report.splits) == {"train", "val", "test"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_goes_through_json_lines_unchanged(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    export_jsonl(dataset, tmp_path / "set" / "all.jsonl")
    again = open_dataset(tmp_path / "set" / "all.jsonl")
    verify_images(again, again.splits)
    for before, after in zip(dataset.samples, again.samples, strict=True):
        assert (after.sample_id, after.split, after.image_path) == (before.sample_id, before.split, before.image_path)
        assert (after.phrase, after.category) == (before.phrase, before.category)
        assert after.mask_source.has_target == before.mask_source.has_target
        assert after.rle == before.rle
        np.testing.assert_array_equal(load_pair(after).mask, load_pair(before).mask)


@pytest.mark.parametrize("name", WRITERS)
def test_samples_cross_to_other_processes(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    samples = open_dataset(tmp_path / "set").samples
    assert pickle.loads(pickle.dumps(samples)) == samples


@pytest.mark.parametrize("name", WRITERS)
def test_the_command_checks_every_format(tmp_path: Path, name: str) -> None:
    from rsrefseg.cli import app

    WRITERS[name](tmp_path / "set")
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert name in result.output
    assert "no faults" in result.output


def move_annotations_to_the_root(root: Path) -> None:
    for path in (root / "rrsisd").iterdir():
        shutil.move(path, root / path.name)
    (root / "rrsisd").rmdir()


def test_annotation_files_of_the_same_names_are_told_apart_by_the_image_folder(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a")
    move_annotations_to_the_root(tmp_path / "a")
    write_nwpu(tmp_path / "b", prefix="")
    names = [{path.name for path in (tmp_path / folder).iterdir() if path.is_file()} for folder in "ab"]
    assert names[0] == names[1] == {"refs(unc).p", "instances.json"}
    assert [open_dataset(tmp_path / folder).name for folder in "ab"] == ["RRSIS-D", "NWPU-Refer"]


def test_a_stray_folder_does_not_turn_rrsisd_into_nwpu_refer(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set")
    move_annotations_to_the_root(tmp_path / "set")
    (tmp_path / "set" / "image").mkdir()
    assert open_dataset(tmp_path / "set").name == "RRSIS-D"


def test_nwpu_refer_without_its_marks_is_not_read_as_rrsisd(tmp_path: Path) -> None:
    root = write_nwpu(tmp_path / "set", prefix="")
    moved = (root / "image").rename(tmp_path / "pictures")
    line = refusal(lambda: open_dataset(root, images=moved))
    assert "annotation 1" in line
    assert "NWPU-Refer" in line


def test_a_folder_of_no_format_is_told_them_all(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    line = refusal(lambda: open_dataset(tmp_path / "set"))
    for name in (*WRITERS, "JSONL"):
        assert name in line
