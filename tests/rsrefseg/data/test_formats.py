"""Every format is detected, read with known masks, equal as JSON lines, and checked for faults."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.jsonl import common_image_folder, export_jsonl
from rsrefseg.data.masks import encode_mask
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from rsrefseg.data.samples import Dataset, group_by_image
from rsrefseg.data.verify import verify_samples
from rsrefseg.engines.errors import BadInputError
from tests.support import made_formats as made
from tests.support.made_data import change_instances, change_refs, instances_path, referral, refusal, write_scenes
from tests.support.made_formats import HEIGHT, LOW, SQUARE, TRIANGLE, WIDTH, WRITERS

Writer = Callable[[Path], object]
ALL_SPLITS = ("train", "val", "test")


def drawn(*polygons: list[float]) -> np.ndarray:
    """Draw polygons with the COCO API."""
    return coco.decode(coco.merge(coco.frPyObjects(list(polygons), HEIGHT, WIDTH))).astype(bool)


def assert_masks(dataset: Dataset, expected: list[np.ndarray]) -> None:
    for sample, mask in zip(dataset.samples, expected, strict=True):
        np.testing.assert_array_equal(sample.mask(), mask)
        assert sample.mask().dtype == np.bool_
        assert sample.mask_size == mask.shape
    assert [len(part) for part in verify_samples(dataset, dataset.splits)]


@pytest.mark.parametrize("annotations", ["rrsisd", "."])
def test_rrsisd(tmp_path: Path, annotations: str) -> None:
    root = tmp_path / "set"
    written = write_scenes(root)
    if annotations == ".":
        for path in list((root / "rrsisd").iterdir()):
            shutil.move(path, root / path.name)
        (root / "image").mkdir()  # a stray folder does not make it NWPU-Refer
    dataset = open_dataset(root)
    assert (dataset.name, dataset.splits) == ("RRSIS-D", ALL_SPLITS)
    for sample, expected in zip(dataset.samples, written, strict=True):
        assert (sample.phrase, sample.category) == (expected.phrase, expected.category)
    assert_masks(dataset, [expected.mask for expected in written])


@pytest.mark.parametrize(
    ("name", "images", "masks", "suffix", "named"),
    [
        ("RefSegRS", "images", "masks", ".tif", ""),
        ("RefSegRS", "images", "masks", ".tif", ".tif"),
        ("RISBench", "img_rgb", "mask", ".png", ".png"),
        ("RISBench", "images", "mask", ".png", ""),
        ("RISBench", "images", "masks", ".png", ""),
    ],
)
def test_refsegrs_and_risbench(tmp_path: Path, name: str, images: str, masks: str, suffix: str, named: str) -> None:
    dataset = open_dataset(made.write_lists(tmp_path / "set", images, masks, suffix, named))
    assert (dataset.name, dataset.splits) == (name, ALL_SPLITS)
    assert tuple((sample.split, sample.image_path.stem, sample.phrase) for sample in dataset.samples) == made.LINES
    assert [sample.sample_id for sample in dataset.samples] == ["train-1", "train-2", "val-1", "test-1"]
    assert_masks(dataset, [made.mask_of(int(number)) for _, number, _ in made.LINES])
    first, second, *_ = dataset.samples
    before = first.mask_fingerprint
    Image.fromarray(made.mask_of(9)).save(first.mask_source)
    assert first.mask_fingerprint == second.mask_fingerprint != before


@pytest.mark.parametrize("refs", ["refs(unc)_RemoteSAM.p", "refs(unc).p"])
def test_remotesam(tmp_path: Path, refs: str) -> None:
    root = tmp_path / "set"
    made.write_remotesam(root, refs)
    dataset = open_dataset(root)
    written = write_scenes(tmp_path / "scenes")
    assert (dataset.name, dataset.splits) == ("RemoteSAM-270K", ALL_SPLITS)
    assert [sample.image_path.name for sample in dataset.samples[::2]] == [f"{n:05d}.jpg" for n in (1, 2, 3, 4)]
    assert_masks(dataset, [expected.mask for expected in written])


@pytest.mark.parametrize("file", ["refs(unc).p", "instances.json"])
def test_rrsisd_may_have_a_folder_jpegimages(tmp_path: Path, file: str) -> None:
    write_scenes(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    assert open_dataset(tmp_path).name == "RRSIS-D"
    (tmp_path / "rrsisd" / file).unlink()
    assert f"rrsisd/{file}' is missing" in refusal(lambda: open_dataset(tmp_path))


@pytest.mark.parametrize("prefix", ["new_", ""])
@pytest.mark.parametrize("images", ["image", "image/image"])
def test_nwpu_refer(tmp_path: Path, prefix: str, images: str) -> None:
    dataset = open_dataset(made.write_nwpu(tmp_path / "set", prefix, images))
    assert dataset.name == "NWPU-Refer"
    assert [(s.sample_id, s.split, s.phrase, s.category, s.has_target) for s in dataset.samples] == [
        ("1", "train", "all ships", "ship", True),
        ("2-1", "train", "the pair", "bridge", True),
        ("3", "val", "the left edge", "ship", True),
        ("4", "test", "the absent plane", "ship", False),
        ("5", "test", "the absent car", "bridge", False),
    ]
    left_edge, nothing = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    left_edge[:, :2] = True
    union = drawn(SQUARE, TRIANGLE, LOW)
    assert_masks(dataset, [union, drawn(TRIANGLE, LOW), left_edge, nothing, nothing])


def test_json_lines_of_other_tools(tmp_path: Path) -> None:
    mask = referral().mask
    (tmp_path / "images").mkdir()
    Image.new("RGB", mask.shape[::-1]).save(tmp_path / "images" / "a.png")
    line = {"split": "test", "image_id": 5, "sent": "it", "file_name": "a.png", "segmentation": encode_mask(mask)}
    (tmp_path / "set.jsonl").write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}\n", encoding="utf-8-sig")
    dataset = open_dataset(tmp_path / "set.jsonl")
    assert [sample.sample_id for sample in dataset.samples] == ["1", "3"]
    assert_masks(dataset, [mask, mask])


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_format_is_equal_as_json_lines_and_in_other_processes(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert export_jsonl(dataset, tmp_path / "set" / "all.jsonl").samples == len(dataset.samples)
    again = open_dataset(tmp_path / "set" / "all.jsonl")
    for before, after in zip(dataset.samples, again.samples, strict=True):
        for field in ("sample_id", "split", "image_path", "phrase", "category", "has_target", "rle", "mask_size"):
            assert getattr(after, field) == getattr(before, field)
    boxes = [json.loads(line)["bbox"] for line in (tmp_path / "set" / "all.jsonl").read_text().splitlines()]
    for box, sample in zip(boxes, dataset.samples, strict=True):
        rows, columns = np.nonzero(sample.mask())
        known = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box == known


def test_refdior(tmp_path: Path) -> None:
    dataset = open_dataset(made.write_refdior(tmp_path / "set"))
    assert (dataset.name, dataset.splits) == ("RefDIOR", ALL_SPLITS)
    assert tuple((sample.split, sample.image_path.stem, sample.phrase) for sample in dataset.samples) == made.LINES
    assert [sample.sample_id for sample in dataset.samples] == ["train-7-0", "train-7-1", "val-13", "test-4"]
    assert_masks(dataset, [made.mask_of(int(number)) for _, number, _ in made.LINES])


def test_aerial_d_reads_objects_and_groups_with_every_kind_of_expression(tmp_path: Path) -> None:
    root = made.write_aerial_d(tmp_path / "set", splits=("train", "val"))
    (root / "val" / "annotations" / "._P0707_patch_000001.xml").write_bytes(b"\0\5\x16\7")  # from a Mac's archive
    dataset = open_dataset(root)
    assert (dataset.name, dataset.splits) == ("Aerial-D", ("train", "val"))
    name = "P0707_patch_000000"
    assert [(sample.sample_id, sample.phrase, sample.category) for sample in dataset.split("train")] == [
        (f"train-{name}-object-40081-0", "the ship in the top left", "ship"),
        (f"train-{name}-object-40081-1", "the vessel, at the quay", "ship"),
        (f"train-{name}-group-1000000-0", "all ships", "ship"),
    ]
    assert_masks(dataset, [made.mask_of(1), made.mask_of(1), made.mask_of(1) | made.mask_of(10)] * 2)


def test_the_image_folder_distinguishes_annotation_files_of_the_same_names(tmp_path: Path) -> None:
    root = made.write_nwpu(tmp_path / "set", prefix="")
    assert open_dataset(root).name == "NWPU-Refer"
    moved = (root / "image").rename(tmp_path / "elsewhere")
    assert "NWPU-Refer" in refusal(lambda: open_dataset(root, images=moved))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


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
    assert first.mask_source == second.mask_source


def test_several_run_length_masks_of_an_object_are_united(root: Path) -> None:
    parts = np.zeros((2, 40, 56), dtype=bool)
    parts[0, 2:9, 3:8] = parts[1, 30:, 40:] = True
    both = [encode_mask(part) for part in parts]
    change_instances(root, lambda content: content["annotations"][0].update(segmentation=both))
    np.testing.assert_array_equal(open_dataset(root).samples[0].mask(), parts.any(axis=0))
    line = {"split": "test", "file_name": "00001.jpg", "sent": "the ship", "segmentation": both}
    (root / "one.jsonl").write_text(json.dumps(line))
    (sample,) = open_dataset(root / "one.jsonl").samples
    np.testing.assert_array_equal(sample.mask(), parts.any(axis=0))


def test_numpy_numbers_byte_order_marks_and_backslashes_are_read(root: Path) -> None:
    expected = open_dataset(root).samples
    ids = ("ref_id", "image_id", "ann_id", "category_id")
    change_refs(root, lambda refs: [ref.update({key: np.int64(ref[key]) for key in ids}) for ref in refs])
    (root / IMAGE_FOLDER / "deep").mkdir()
    for path in (root / IMAGE_FOLDER).glob("*.jpg"):
        path.rename(path.parent / "deep" / path.name)

    def deepen(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"deep\\{image['file_name']}"

    change_instances(root, deepen)
    instances_path(root).write_text(instances_path(root).read_text(), encoding="utf-8-sig")
    found = open_dataset(root)
    assert [(s.sample_id, s.phrase, s.rle) for s in found.samples] == [(s.sample_id, s.phrase, s.rle) for s in expected]
    verify_samples(found, found.splits)


def test_samples_are_grouped_by_image_in_a_stable_order(root: Path) -> None:
    samples = open_dataset(root).samples
    groups = group_by_image(samples[::2] + samples[1::2])
    assert ["".join(sample.sample_id for sample in group) for group in groups] == ["12", "34", "56", "78"]


@pytest.mark.parametrize("ann_id", [None, -1, [], [-1]])
@pytest.mark.parametrize("segmentation", [[], [[]], None])
def test_no_target_comes_in_several_forms(tmp_path: Path, ann_id: Any, segmentation: Any) -> None:
    instances = made.nwpu_instances()
    instances["annotations"][3].update(segmentation=segmentation, bbox=[0, 0, 0, 0])
    refs = [*made.nwpu_refs()[:4], made.ref(5, "test", 3, ann_id, "the absent car")]
    samples = open_dataset(made.write_nwpu(tmp_path / "set", instances=instances, refs=refs)).split("test")
    assert len(samples) == 2
    for sample in samples:
        assert (sample.has_target, sample.mask().any(), sample.mask_size) == (False, False, (HEIGHT, WIDTH))


def test_one_sentence_is_merged_within_its_split_and_image_only(tmp_path: Path) -> None:
    refs = [made.ref(1, "train", 1, 1, "it"), made.ref(2, "val", 1, 2, "it"), made.ref(3, "train", 2, 3, "it")]
    samples = open_dataset(made.write_nwpu(tmp_path / "set", refs=refs)).samples
    assert [sample.sample_id for sample in samples] == ["1", "2", "3"]
    np.testing.assert_array_equal(samples[0].mask(), drawn(SQUARE))


def test_entries_of_one_sentence_may_mix_polygons_and_run_lengths(tmp_path: Path) -> None:
    instances, mask = made.nwpu_instances(), drawn(LOW)
    instances["annotations"][1]["segmentation"] = [encode_mask(mask)]
    samples = open_dataset(made.write_nwpu(tmp_path / "set", instances=instances)).samples
    np.testing.assert_array_equal(samples[0].mask(), drawn(SQUARE) | mask)
    instances["annotations"][1]["segmentation"] = encode_mask(mask[:-1])
    broken = open_dataset(made.write_nwpu(tmp_path / "other", instances=instances)).samples[0]
    assert f"[{HEIGHT - 1}, {WIDTH}]" in refusal(broken.mask)


def test_polygons_may_reach_over_the_edge(tmp_path: Path) -> None:
    instances = made.nwpu_instances()
    instances["annotations"][2]["segmentation"] = [[-3, -2, WIDTH + 4, -2, WIDTH + 4, 10, -3, 10]]
    (sample,) = open_dataset(made.write_nwpu(tmp_path / "set", instances=instances)).split("val")
    assert sample.mask()[:9].all()
    assert not sample.mask()[11:].any()


def test_lists_come_with_windows_line_ends_marks_and_blank_lines(tmp_path: Path) -> None:
    root = made.write_refsegrs(tmp_path / "set")
    (root / "output_phrase_train.txt").write_bytes("\ufeff7  the ship \r\n\r\n  13\tit\r\n4 last".encode())
    (root / "masks" / "7.tif").rename(root / "masks" / "7.png")
    samples = open_dataset(root).split("train")
    assert [(sample.sample_id, sample.image_path.name, sample.phrase) for sample in samples] == [
        ("train-1", "7.tif", "the ship"),
        ("train-3", "13.tif", "it"),
        ("train-4", "4.tif", "last"),
    ]
    assert samples[0].mask_source == root / "masks" / "7.png"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_option_names_another_image_folder(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    export_jsonl(dataset, tmp_path / "all.jsonl")
    with pytest.raises(BadInputError, match=r"\.jsonl"):
        export_jsonl(dataset, tmp_path / "all.json")
    common, moved = common_image_folder(dataset.samples), tmp_path / "elsewhere"
    for folder in {sample.image_path.parent for sample in dataset.samples}:
        (moved / folder.relative_to(common)).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(moved / folder.relative_to(common))
    for path in ("set", "all.jsonl"):
        assert "--images" in refusal(lambda path=path: open_dataset(tmp_path / path))
        verify_samples(open_dataset(tmp_path / path, images=moved), ALL_SPLITS)
