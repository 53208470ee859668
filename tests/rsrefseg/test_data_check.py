"""The check of a whole data set."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.check import Problem, check_dataset
from rsrefseg.data.masks import encode_mask
from rsrefseg.data.phrase_length import PhraseRule
from tests.support.made_data import HEIGHT, WIDTH, change_instances, change_refs, image_path, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def found(root: Path, **options: Any) -> dict[Problem, tuple[int, tuple[str, ...]]]:
    report = check_dataset(root, **options)
    assert set(report.faults) | set(report.notes) == set(report.findings)
    return {finding.problem: (finding.count, finding.examples) for finding in report.findings}


def test_a_sound_data_set_has_no_findings(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = check_dataset(root, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert report.findings == ()
    assert {name: (split.samples, split.images) for name, split in report.splits.items()} == {
        "train": (4, 2),
        "val": (2, 1),
        "test": (2, 1),
    }
    assert report.categories == {"ship": 4, "bridge": 4}
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads(json.dumps(report.as_dict()))["faults"] == []


def test_the_check_finds_what_is_wrong_with_images_and_masks(root: Path) -> None:
    image_path(root, 1).unlink()
    image_path(root, 2).write_text("not an image")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(image_path(root, 3))

    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][6]["segmentation"] = [encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))]
        content["annotations"][7]["segmentation"][0]["counts"] = "52"

    change_instances(root, spoil)
    problems = found(root)
    assert {problem: count for problem, (count, _) in problems.items()} == {
        Problem.MISSING_IMAGE: 1,
        Problem.UNREADABLE_IMAGE: 1,
        Problem.SIZE_DIFFERENCE: 2,
        Problem.EMPTY_MASK: 1,
        Problem.BROKEN_MASK: 1,
    }
    assert "00001.jpg" in problems[Problem.MISSING_IMAGE][1][0]
    assert "00002.jpg" in problems[Problem.UNREADABLE_IMAGE][1][0]
    faults = {finding.problem for finding in check_dataset(root).faults}
    assert faults == {Problem.MISSING_IMAGE, Problem.UNREADABLE_IMAGE, Problem.BROKEN_MASK}


def test_a_test_image_under_another_name_in_training_is_found(root: Path) -> None:
    with Image.open(image_path(root, 4)) as image:
        image.save(image_path(root, 1), format="PNG")  # other bytes, same pixels
    assert found(root) == {Problem.SHARED_BETWEEN_SPLITS: (1, ("'00001.jpg' = '00004.jpg' in train and test",))}


def test_one_file_used_by_two_splits_is_found(root: Path) -> None:
    change_refs(root, lambda refs: refs[1].update(split="test"))
    assert found(root) == {Problem.SHARED_BETWEEN_SPLITS: (1, ("'00001.jpg' in train and test",))}


def test_a_copy_within_a_split_is_a_note(root: Path) -> None:
    shutil.copy(image_path(root, 1), image_path(root, 2))
    assert found(root) == {Problem.REPEATED_IMAGE: (1, ("'00001.jpg' = '00002.jpg'",))}
    assert check_dataset(root).faults == ()


def test_the_check_looks_at_phrases_and_ids(root: Path) -> None:
    def spoil(refs: list[dict[str, Any]]) -> None:
        refs[0]["sentences"][0]["sent"] = "  "
        refs[2]["sentences"][0]["sent"] = "word " * 80
        refs[5]["sentences"][0]["sent"] = refs[4]["sentences"][0]["sent"]
        refs[7]["ref_id"] = refs[6]["ref_id"]

    change_refs(root, spoil)
    assert found(root, phrase_rule=PhraseRule(lambda phrase: len(phrase.split()), 64, "words")) == {
        Problem.EMPTY_PHRASE: (1, ("sample '1'",)),
        Problem.LONG_PHRASE: (1, ("sample '3' (80)",)),
        Problem.REPEATED_SAMPLE: (1, ("sample '6'",)),
        Problem.REPEATED_ID: (1, ("sample '7'",)),
    }
    assert Problem.LONG_PHRASE not in found(root)
