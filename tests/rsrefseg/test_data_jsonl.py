"""Data sets as JSON lines."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.jsonl import export_jsonl
from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.masks import encode_mask, mask_box
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from rsrefseg.data.samples import open_dataset
from tests.support.made_data import HEIGHT, WIDTH, referral, refusal, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def test_a_data_set_goes_through_json_lines_unchanged(root: Path) -> None:
    dataset = open_dataset(root)
    assert export_jsonl(dataset, root / "scenes.jsonl") == len(dataset.samples)
    again = open_dataset(root / "scenes.jsonl")
    assert again.samples == dataset.samples
    first = json.loads((root / "scenes.jsonl").read_text().splitlines()[0])
    assert {"split", "image_id", "sent", "file_name", "category_name", "bbox", "segmentation"} <= set(first)
    assert first["bbox"] == [3, 5, 20, 30]
    for sample, line in zip(dataset.samples, (root / "scenes.jsonl").read_text().splitlines(), strict=True):
        assert tuple(json.loads(line)["bbox"]) == mask_box(sample.mask())


def test_json_lines_elsewhere_need_their_image_folder_named(root: Path, tmp_path: Path) -> None:
    export_jsonl(open_dataset(root), tmp_path / "elsewhere" / "scenes.jsonl")
    assert "--images" in refusal(lambda: open_dataset(tmp_path / "elsewhere" / "scenes.jsonl"))
    dataset = open_dataset(tmp_path / "elsewhere" / "scenes.jsonl", images=root / IMAGE_FOLDER)
    verify_images(dataset, dataset.splits)


def test_json_lines_of_other_tools_are_read(tmp_path: Path) -> None:
    mask = referral().mask
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.png")
    line = {"split": "test", "image_id": 5, "sent": "it", "file_name": "a.png", "segmentation": encode_mask(mask)}
    (tmp_path / "set.jsonl").write_text(json.dumps(line) + "\n\n" + json.dumps(line) + "\n")
    samples = open_dataset(tmp_path / "set.jsonl").samples
    assert [sample.sample_id for sample in samples] == ["1", "3"]
    np.testing.assert_array_equal(load_pair(samples[0]).mask, mask)


@pytest.mark.parametrize("line", ["{", "[]", "{}", "[" * 200_000, '{"split": 3}', '{"file_name": "a.png", "sent": 1}'])
def test_a_broken_line_is_named_by_its_number(root: Path, line: str) -> None:
    path = root / "scenes.jsonl"
    export_jsonl(open_dataset(root), path)
    path.write_text(path.read_text() + line + "\n")
    assert "line 9 of" in refusal(lambda: open_dataset(path))
