"""Made scenes written in the RRSIS-D layout."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.rrsisd_writer import RRSISDWriter
from rsrefseg.engines.system.files import sha256_file
from tests.support.made_data import (
    HEIGHT,
    SPLITS,
    WIDTH,
    Referral,
    image_path,
    instances_path,
    referral,
    refs_path,
    refusal,
    write_scenes,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def test_written_files_have_the_layout_and_quirks_of_the_real_ones(root: Path) -> None:
    refs = pickle.loads(refs_path(root).read_bytes())
    content = json.loads(instances_path(root).read_text())
    assert set(refs[0]) == {
        *("image_id", "split", "sentences", "file_name", "category_id", "ann_id", "sent_ids", "ref_id"),
    }
    assert set(refs[0]["sentences"][0]) == {"tokens", "raw", "sent_id", "sent"}
    annotation = content["annotations"][0]
    assert {"id", "image_id", "categories_id", "bbox", "area", "segmentation"} <= set(annotation)
    assert "category_id" not in annotation
    assert annotation["bbox"] == [3, 5, 20, 30]
    assert annotation["area"] == 17 * 25
    assert [set(part) for part in annotation["segmentation"]] == [{"size", "counts"}]
    assert refs[0]["file_name"] == "00001.jpg"
    with Image.open(image_path(root, 1)) as image:
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
        assert {component[1:3] for component in image.layer} == {(1, 1)}  # no chroma subsampling


def test_the_same_scenes_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        write_scenes(tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append({str(path.relative_to(tmp_path / name)): sha256_file(path) for path in files})
    assert len(digests[0]) == len(SPLITS) + 2
    assert digests[0] == digests[1]


def test_equal_phrases_give_the_same_bytes_whether_or_not_they_are_one_object(tmp_path: Path) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    shared = "the ship"
    rebuilt = "".join(["the", " ship"])
    assert shared is not rebuilt
    for name, second in (("shared", shared), ("rebuilt", rebuilt)):
        with RRSISDWriter(tmp_path / name) as writer:
            writer.add("train", image, [referral(shared), referral(second)])
    assert sha256_file(refs_path(tmp_path / "shared")) == sha256_file(refs_path(tmp_path / "rebuilt"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with RRSISDWriter(tmp_path / "scenes") as writer:
            writer.add("train", np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), [referral()])
            raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [np.zeros((HEIGHT, WIDTH + 1), dtype=bool), np.zeros((HEIGHT, WIDTH), dtype=np.uint8)])
def test_masks_that_do_not_fit_their_image_are_not_written(tmp_path: Path, mask: np.ndarray) -> None:
    with RRSISDWriter(tmp_path / "scenes") as writer:
        image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match="a mask must be"):
            writer.add("train", image, [Referral("the ship", "ship", mask)])
        writer.add("train", image, [referral()])
    assert len(open_dataset(tmp_path / "scenes").samples) == 1


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    for overwrite in (False, True):
        line = refusal(RRSISDWriter(tmp_path, overwrite=overwrite).__enter__)
        assert "already holds something" in line
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_a_data_set_is_replaced_when_asked(root: Path) -> None:
    refusal(RRSISDWriter(root).__enter__)
    with RRSISDWriter(root, overwrite=True) as writer:
        writer.add("train", np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), [referral()])
    assert len(open_dataset(root).samples) == 1
