"""Masks as run lengths: every form they come in, and every way they break."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.loading import load_pair
from rsrefseg.data.mask_sources import RleMask
from rsrefseg.data.masks import MAX_MASK_PIXELS, decode_rle, encode_mask, mask_box
from rsrefseg.data.samples import Sample, open_dataset
from tests.support.made_data import HEIGHT, WIDTH, change_instances, image_path, referral, refusal, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


@pytest.mark.parametrize("form", ["dict", "list", "runs"])
def test_masks_come_as_a_dict_a_list_of_one_or_plain_runs(root: Path, form: str) -> None:
    expected = [sample.mask() for sample in open_dataset(root).samples]

    def rewrite(content: dict[str, Any]) -> None:
        for annotation, mask in zip(content["annotations"], expected, strict=True):
            rle = annotation["segmentation"][0]
            if form == "runs":
                edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=~mask[-1, -1]))
                rle = {"size": rle["size"], "counts": np.diff(edges, prepend=0).tolist()}
            annotation["segmentation"] = [rle] if form == "list" else rle

    change_instances(root, rewrite)
    for sample, mask in zip(open_dataset(root).samples, expected, strict=True):
        np.testing.assert_array_equal(sample.mask(), mask)


def test_counts_may_be_bytes() -> None:
    mask = referral().mask
    rle = encode_mask(mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}, "a mask"), mask)


def test_the_box_is_that_of_the_mask() -> None:
    assert mask_box(referral(box=(3, 5, 20, 30)).mask) == (3, 5, 20, 30)
    assert mask_box(referral(box=(0, 0, WIDTH, HEIGHT)).mask) == (0, 0, WIDTH, HEIGHT)
    assert mask_box(np.zeros((4, 4), dtype=bool)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("rle", "expected"),
    [
        ({"size": [10, 10], "counts": "52"}, "7 pixels where the size says 100"),
        ({"size": [10, 10], "counts": ""}, "0 pixels"),
        ({"size": [10, 10], "counts": b"\xff\xff"}, "unknown character"),
        ({"size": [10, 10], "counts": "5o"}, "cut off"),
        ({"size": [10, 10], "counts": "O"}, "negative run"),
        ({"size": [10, 10], "counts": "o" * 40 + "0"}, "unknown character"),
        ({"size": [10, 10], "counts": [5, -3, 98]}, "broken"),
        ({"size": [10, 10], "counts": [1, 2]}, "3 pixels"),
        ({"size": [10, 10], "counts": None}, "broken"),
        ({"size": [10, 10]}, "no run-length mask"),
        ({"size": [10, 0], "counts": "0"}, "no image has"),
        ({"size": ["10", 10], "counts": "0"}, "no image has"),
        ({"size": [MAX_MASK_PIXELS, 2], "counts": "0"}, "beyond the limit"),
    ],
)
def test_broken_masks_name_their_sample(rle: dict[str, Any], expected: str) -> None:
    sample = Sample("s7", "train", Path("a.jpg"), "the ship", "ship", RleMask(rle))
    line = refusal(sample.mask)
    assert expected in line
    assert "'s7'" in line


def test_a_mask_of_another_size_is_refused_or_resized_as_asked(root: Path) -> None:
    Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(image_path(root, 1))
    sample = open_dataset(root).samples[0]
    line = refusal(lambda: load_pair(sample))
    for part in ("'1'", "00001.jpg", f"{HEIGHT}x{WIDTH}", f"{2 * HEIGHT}x{2 * WIDTH}", "--resize-masks"):
        assert part in line
    pair = load_pair(sample, on_size_mismatch="resize")
    assert pair.resized
    np.testing.assert_array_equal(pair.mask, sample.mask().repeat(2, axis=0).repeat(2, axis=1))


def test_a_pair_of_equal_sizes_is_left_alone(root: Path) -> None:
    pair = load_pair(open_dataset(root).samples[1], on_size_mismatch="resize")
    assert not pair.resized
    assert pair.image.shape == (HEIGHT, WIDTH, 3)
    assert pair.mask.shape == (HEIGHT, WIDTH)
