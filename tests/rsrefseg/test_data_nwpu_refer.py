"""NWPU-Refer: polygons, unions of masks, and expressions without a target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from rsrefseg.data.check import Problem, check_dataset
from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.mask_sources import NoTarget, OutlineMask
from rsrefseg.data.masks import encode_mask
from rsrefseg.data.samples import Sample, open_dataset
from tests.support.made_data import refusal
from tests.support.made_formats import (
    HEIGHT,
    LOW,
    SQUARE,
    TRIANGLE,
    WIDTH,
    annotation,
    nwpu_instances,
    nwpu_refs,
    ref,
    write_nwpu,
)


def drawn(*polygons: list[float]) -> np.ndarray:
    """As the COCO API draws them."""
    rles = coco.frPyObjects(list(polygons), HEIGHT, WIDTH)
    return coco.decode(coco.merge(rles)).astype(bool)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_nwpu(tmp_path / "set")


@pytest.mark.parametrize("prefix", ["new_", ""])
@pytest.mark.parametrize("images", ["image", "image/image"])
def test_every_layout_gives_the_same_samples(tmp_path: Path, prefix: str, images: str) -> None:
    root = write_nwpu(tmp_path / "set", prefix, images)
    dataset = open_dataset(root)
    assert dataset.name == "NWPU-Refer"
    assert [(sample.sample_id, sample.split, sample.phrase, sample.category) for sample in dataset.samples] == [
        ("1", "train", "all ships", "ship"),
        ("2-1", "train", "the pair", "bridge"),
        ("3", "val", "the left edge", "ship"),
        ("4", "test", "the absent plane", "ship"),
        ("5", "test", "the absent car", "bridge"),
    ]
    left_edge = np.zeros((HEIGHT, WIDTH), dtype=bool)
    left_edge[:, :2] = True
    nothing = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected = (drawn(SQUARE, TRIANGLE, LOW), drawn(TRIANGLE, LOW), left_edge, nothing, nothing)
    for sample, mask in zip(dataset.samples, expected, strict=True):
        pair = load_pair(sample)
        np.testing.assert_array_equal(pair.mask, mask)
        assert not pair.resized
    verify_images(dataset, dataset.splits)


def test_stray_files_in_the_image_folder_do_not_hide_the_one_below(tmp_path: Path) -> None:
    root = write_nwpu(tmp_path / "set")
    (root / "image" / "image").mkdir()
    assert open_dataset(root).samples[0].image_path == root / "image" / "1.jpg"


def test_the_same_sentence_in_two_splits_or_images_is_not_merged(tmp_path: Path) -> None:
    refs = [
        ref(1, "train", 1, 1, "it"),
        ref(2, "val", 1, 2, "it"),
        ref(3, "train", 2, 3, "it"),
    ]
    samples = open_dataset(write_nwpu(tmp_path / "set", refs=refs)).samples
    assert [sample.sample_id for sample in samples] == ["1", "2", "3"]
    np.testing.assert_array_equal(samples[0].mask(), drawn(SQUARE))


def test_entries_of_one_sentence_may_mix_polygons_and_run_lengths(tmp_path: Path) -> None:
    instances, mask = nwpu_instances(), drawn(LOW)
    instances["annotations"][1]["segmentation"] = [encode_mask(mask)]
    root = write_nwpu(tmp_path / "set", instances=instances)
    np.testing.assert_array_equal(open_dataset(root).samples[0].mask(), drawn(SQUARE) | mask)
    instances["annotations"][1]["segmentation"] = encode_mask(mask[:-1])
    root = write_nwpu(tmp_path / "other", instances=instances)
    assert f"is {HEIGHT - 1}x{WIDTH}" in refusal(open_dataset(root).samples[0].mask)


@pytest.mark.parametrize("ann_id", [None, -1, [], [-1]])
@pytest.mark.parametrize("segmentation", [[], [[]], None])
def test_no_target_comes_in_several_forms(tmp_path: Path, ann_id: Any, segmentation: Any) -> None:
    instances = nwpu_instances()
    instances["annotations"][3].update(segmentation=segmentation, bbox=[0, 0, 0, 0])
    refs = [*nwpu_refs()[:4], ref(5, "test", 3, ann_id, "the absent car")]
    samples = open_dataset(write_nwpu(tmp_path / "set", instances=instances, refs=refs)).split("test")
    assert [sample.mask_source for sample in samples] == [NoTarget(HEIGHT, WIDTH)] * 2


def test_the_check_counts_expressions_without_target_as_a_note(root: Path) -> None:
    report = check_dataset(root)
    assert [(finding.problem, finding.count) for finding in report.notes] == [(Problem.NO_TARGET, 2)]
    assert report.faults == ()
    assert report.categories == {"ship": 3, "bridge": 2}


def test_an_outline_that_covers_no_pixel_is_an_empty_mask_all_the_same(tmp_path: Path) -> None:
    instances = nwpu_instances()
    instances["annotations"][0]["segmentation"] = [[1, 1, 1, 1, 1, 1]]
    root = write_nwpu(tmp_path / "set", instances=instances, refs=[ref(1, "train", 1, 1, "it")])
    assert [finding.problem for finding in check_dataset(root).findings] == [Problem.EMPTY_MASK]


def test_a_mask_of_another_size_than_its_image_is_found_by_what_the_annotations_state(tmp_path: Path) -> None:
    instances = nwpu_instances()
    instances["images"][0]["height"] = 2 * HEIGHT
    root = write_nwpu(tmp_path / "set", instances=instances)
    assert open_dataset(root).samples[0].mask_size == (2 * HEIGHT, WIDTH)
    assert "--resize-masks" in refusal(lambda: load_pair(open_dataset(root).samples[0]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda made: made["images"].pop(0), "expression 1 of"),
        (lambda made: made["annotations"].pop(0), "points at annotation 1"),
        (lambda made: made["annotations"][0].pop("segmentation"), "annotation 1"),
        (lambda made: made["annotations"][0].update(segmentation="x"), "annotation 1"),
        (lambda made: made["annotations"][0].update(segmentation=[1, 2, 3]), "annotation 1"),
        (lambda made: made["annotations"][0].update(segmentation=[{"counts": ""}, [1]]), "annotation 1"),
        (lambda made: made["annotations"][3].update(bbox=[1, 1, 5, 5]), "a box but no outline"),
        (lambda made: made["images"][0].pop("height"), "image 1 of"),
        (lambda made: made["images"][2].update(width=10**9), "image 3 of"),
        (lambda made: made["images"][0].update(file_name="../1.jpg"), "outside the image folder"),
    ],
)
def test_broken_annotations_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    instances = nwpu_instances()
    change(instances)
    root = write_nwpu(tmp_path / "set", instances=instances)
    assert expected in refusal(lambda: open_dataset(root))


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([1, 2, 3, 4], "three points"),  # pycocotools would take it for a box
        ([1, 2, 3, 4, 5, 6, 7], "three points"),
        ([1, 2, 3, 4, 5, "six"], "something else than numbers"),
        ([1, 2, 3, 4, 5, [6, 7]], "something else than numbers"),
        ([[1, 2], [3, 4], [5, 6]], "three points"),
        ([1, 2, 3, 4, 5, float("nan")], "far outside"),
        ([1, 2, 3, 4, 5, float("inf")], "far outside"),
        ([1, 2, 3, 4, 5, 1e9], "far outside"),
        ([0, 0, 30, 20] * 200_000, "pixels, which no object has"),
    ],
)
def test_broken_polygons_name_their_sample(polygon: list[Any], expected: str) -> None:
    source = OutlineMask(([polygon],), HEIGHT, WIDTH)
    line = refusal(Sample("s7", "train", Path("a.jpg"), "it", "ship", source).mask)
    assert expected in line
    assert "'s7'" in line


def test_a_polygon_may_reach_over_the_edge(tmp_path: Path) -> None:
    outside = [-3.0, -2.0, WIDTH + 4.0, -2.0, WIDTH + 4.0, 10.0, -3.0, 10.0]
    instances = nwpu_instances()
    instances["annotations"].append(annotation(9, 1, [outside]))
    root = write_nwpu(tmp_path / "set", instances=instances, refs=[ref(1, "train", 1, 9, "it")])
    mask = open_dataset(root).samples[0].mask()
    assert mask[:9].all()
    assert not mask[11:].any()


@pytest.mark.parametrize("kept", ["new_refs(unc).p", "new_instances.json"])
def test_a_file_of_the_corrected_pair_is_never_used_with_one_of_the_other(root: Path, kept: str) -> None:
    for name in ("new_refs(unc).p", "new_instances.json"):
        (root / name.removeprefix("new_")).write_bytes((root / name).read_bytes())
        if name != kept:
            (root / name).unlink()
    line = refusal(lambda: open_dataset(root))
    assert "is missing, which belongs to" in line
    assert kept in line


def test_a_missing_image_folder_is_named_and_another_can_be_given(root: Path, tmp_path: Path) -> None:
    moved = (root / "image").rename(tmp_path / "pictures")
    assert str(root / "image") in refusal(lambda: open_dataset(root))
    dataset = open_dataset(root, images=moved)
    verify_images(dataset, dataset.splits)


def test_fingerprints_tell_masks_apart(root: Path) -> None:
    samples = open_dataset(root).samples
    assert len({sample.mask_fingerprint for sample in samples[:4]}) == 4
    assert samples[3].mask_fingerprint == samples[4].mask_fingerprint
