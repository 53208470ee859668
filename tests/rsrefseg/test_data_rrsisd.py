"""RRSIS-D as people have it: its quirks, its other layouts, and annotations that are broken."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.data.loading import verify_images
from rsrefseg.data.rrsisd import IMAGE_FOLDER, INSTANCES_FILE, REFS_FILE
from rsrefseg.data.samples import open_dataset
from tests.support.made_data import change_instances, change_refs, instances_path, refs_path, refusal, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write_scenes(tmp_path / "scenes")
    dataset = open_dataset(tmp_path / "scenes")
    assert dataset.splits == ("train", "val", "test")
    assert dataset.categories == ("bridge", "ship")
    assert [(sample.phrase, sample.category) for sample in dataset.samples] == [
        (referral.phrase, referral.category) for referral in written
    ]
    for sample, expected in zip(dataset.samples, written, strict=True):
        np.testing.assert_array_equal(sample.mask(), expected.mask)
        assert sample.mask().dtype == np.bool_
    assert [len(dataset.split(split)) for split in dataset.splits] == [4, 2, 2]
    assert len({sample.sample_id for sample in dataset.samples}) == len(dataset.samples)


def test_annotation_files_may_lie_straight_in_the_root(root: Path) -> None:
    expected = open_dataset(root).samples
    for path in (refs_path(root), instances_path(root)):
        shutil.move(path, root / path.name)
    (root / "rrsisd").rmdir()
    assert open_dataset(root).samples == expected


def test_class_names_are_found_by_either_key_and_else_by_number(root: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        first, second = content["annotations"][:2]
        first["category_id"] = first.pop("categories_id")
        second["categories_id"] = 99

    change_instances(root, rename)
    assert [sample.category for sample in open_dataset(root).samples[:2]] == ["ship", "class 99"]


def test_a_ref_with_two_sentences_gives_two_samples_of_one_mask(root: Path) -> None:
    change_refs(root, lambda refs: refs[0]["sentences"].append({"raw": "that vessel", "tokens": [], "sent_id": 99}))
    first, second = open_dataset(root).samples[:2]
    assert (first.phrase, second.phrase) == ("the ship 0", "that vessel")
    assert first.sample_id != second.sample_id
    assert first.rle == second.rle


@pytest.mark.parametrize("missing", [refs_path, instances_path])
def test_a_missing_annotation_file_is_named(root: Path, missing: Callable[[Path], Path]) -> None:
    missing(root).unlink()
    assert str(missing(root)) in refusal(lambda: open_dataset(root))


def test_a_missing_image_folder_is_named_and_another_can_be_given(root: Path, tmp_path: Path) -> None:
    elsewhere = shutil.move(root / IMAGE_FOLDER, tmp_path / "pictures")
    line = refusal(lambda: open_dataset(root))
    assert str(root / IMAGE_FOLDER) in line
    assert "--images" in line
    dataset = open_dataset(root, images=Path(elsewhere))
    verify_images(dataset, dataset.splits)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content["images"].pop(0), "points at image 1"),
        (lambda content: content["annotations"].pop(0), "points at annotation 1"),
        (lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "annotation 1"),
        (lambda content: content["annotations"][0].pop("segmentation"), "annotation 1"),
        (lambda content: content["images"][0].update(file_name="../../../etc/passwd"), "outside the image folder"),
        (lambda content: content["images"][0].update(file_name="/etc/passwd"), "outside the image folder"),
        (lambda content: content["images"][0].update(file_name=None), "no file name"),
        (lambda content: content.pop("annotations"), "no list of 'annotations'"),
        (lambda content: content["images"].append(3), "an entry of 'images'"),
    ],
)
def test_broken_annotations_are_named(root: Path, change: Callable[[dict[str, Any]], object], expected: str) -> None:
    change_instances(root, change)
    line = refusal(lambda: open_dataset(root))
    assert expected in line
    assert INSTANCES_FILE in line or REFS_FILE in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda refs: refs[3].pop("ann_id"), "expression 3 has no 'ann_id'"),
        (lambda refs: refs[3].update(image_id=[1]), "expression 3"),
        (lambda refs: refs[3].update(sentences=7), "expression 3 is malformed"),
        (lambda refs: refs[3].update(sentences=[{"sent": b"x"}]), "expression 3 is malformed"),
        (lambda refs: refs.insert(3, "x"), "expression 3 is no dict"),
        (lambda refs: refs.clear(), "holds no sample"),
    ],
)
def test_broken_expressions_are_named(root: Path, change: Callable[[list[Any]], object], expected: str) -> None:
    change_refs(root, change)
    assert expected in refusal(lambda: open_dataset(root))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 200_000, "\udcff"])
def test_annotations_that_are_not_json_are_named(root: Path, text: str) -> None:
    instances_path(root).write_bytes(text.encode(errors="surrogateescape"))
    assert str(instances_path(root)) in refusal(lambda: open_dataset(root))
