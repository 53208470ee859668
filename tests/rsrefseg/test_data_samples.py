"""What holds for every data set: splits, groups, and files that are missing."""

from pathlib import Path

import pytest

from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.samples import group_by_image, open_dataset
from tests.support.made_data import image_path, refusal, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def test_samples_are_grouped_by_image_in_a_stable_order(root: Path) -> None:
    samples = open_dataset(root).samples
    groups = group_by_image(samples[::2] + samples[1::2])
    assert [group[0].image_path.name for group in groups] == [f"{number:05d}.jpg" for number in (1, 2, 3, 4)]
    assert [[sample.sample_id for sample in group] for group in groups[:2]] == [["1", "2"], ["3", "4"]]


def test_an_unknown_split_names_those_that_exist(root: Path) -> None:
    line = refusal(lambda: open_dataset(root).split("validation"))
    assert "'validation'" in line
    assert "'train', 'val', 'test'" in line


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: open_dataset(tmp_path / "nowhere"))
    line = refusal(lambda: open_dataset(tmp_path))
    assert str(tmp_path) in line
    assert "rrsisd/refs(unc).p" in line


def test_missing_images_are_counted_before_a_run(root: Path) -> None:
    image_path(root, 2).unlink()
    image_path(root, 1).unlink()
    dataset = open_dataset(root)
    verify_images(dataset, ["val", "test"])
    line = refusal(lambda: verify_images(dataset, ["train"]))
    assert "2 of 2 images" in line
    assert str(image_path(root, 1)) in line


def test_an_image_that_is_missing_is_never_replaced_by_another(root: Path) -> None:
    image_path(root, 1).unlink()
    assert str(image_path(root, 1)) in refusal(lambda: load_pair(open_dataset(root).samples[0]))
