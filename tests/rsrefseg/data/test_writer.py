"""Rendered scenes in the RRSIS-D layout."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.rrsisd_writer import Referral, write_rrsisd
from tests.support import made_data
from tests.support.made_data import HEIGHT, WIDTH, referral, refusal, write_scenes

IMAGE = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_written_files_have_the_layout_and_quirks_of_the_real_ones(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    refs = pickle.loads(made_data.refs_path(tmp_path).read_bytes())
    content = json.loads(made_data.instances_path(tmp_path).read_text())
    fields = {"image_id", "split", "sentences", "file_name", "category_id", "ann_id", "sent_ids", "ref_id"}
    assert set(refs[0]) == fields
    assert set(refs[0]["sentences"][0]) == {"tokens", "raw", "sent_id", "sent"}
    annotation = content["annotations"][0]
    assert {"id", "image_id", "categories_id", "bbox", "area", "segmentation"} <= set(annotation)
    assert "category_id" not in annotation
    assert annotation["bbox"] == [3, 5, 20, 30]
    assert annotation["area"] == 17 * 25
    assert [set(part) for part in annotation["segmentation"]] == [{"size", "counts"}]
    with Image.open(made_data.image_path(tmp_path, 1)) as image:
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
        assert {component[1:3] for component in image.layer} == {(1, 1)}  # no chroma subsampling


def test_equal_scenes_give_the_same_bytes_whether_or_not_their_texts_are_one_object(tmp_path: Path) -> None:
    shared = "the ship"
    rebuilt = "".join(["the", " ship"])
    assert shared is not rebuilt
    folders = []
    for name, second in (("shared", shared), ("rebuilt", rebuilt)):
        write_rrsisd(tmp_path / name, [("train", IMAGE, [referral(shared), referral(second)])])
        folders.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert len(folders[0]) == 3
    assert folders[0] == folders[1]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def scenes() -> Iterator[Any]:
        yield "train", IMAGE, [referral()]
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError):
        write_rrsisd(tmp_path / "scenes", scenes())
    small = Referral("the ship", "ship", np.zeros((HEIGHT, WIDTH + 1), dtype=bool))
    with pytest.raises(ValueError, match="a mask must be"):
        write_rrsisd(tmp_path / "scenes", [("train", IMAGE, [small])])
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_only_a_data_set(tmp_path: Path) -> None:
    scenes = [("train", IMAGE, [referral()])]
    write_scenes(tmp_path / "scenes")
    refusal(lambda: write_rrsisd(tmp_path / "scenes", scenes))
    write_rrsisd(tmp_path / "scenes", scenes, overwrite=True)
    assert len(open_dataset(tmp_path / "scenes").samples) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    for overwrite in (False, True):
        refusal(lambda overwrite=overwrite: write_rrsisd(tmp_path / "mine", scenes, overwrite))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    (tmp_path / "scenes" / "notes.txt").write_text("precious")
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "instances.json").write_text("{}")
    for name in ("scenes", "coco"):
        refusal(lambda name=name: write_rrsisd(tmp_path / name, scenes, overwrite=True))
    assert (tmp_path / "scenes" / "notes.txt").is_file()
