"""Data sets as people have them: whole, quirky, broken and hostile."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.errors import BadInputError
from engines.files import sha256_file
from rsrefseg.data.check import Problem, check_dataset
from rsrefseg.data.jsonl import export_jsonl
from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.masks import MAX_MASK_PIXELS, decode_rle, encode_mask, mask_box
from rsrefseg.data.rrsisd import IMAGE_FOLDER, INSTANCES_FILE, REFS_FILE
from rsrefseg.data.rrsisd_writer import RRSISDWriter
from rsrefseg.data.safe_pickle import MAX_PICKLE_BYTES, MAX_PICKLE_OBJECTS, load_plain_pickle
from rsrefseg.data.samples import Sample, group_by_image, open_dataset

SPLITS = ("train", "train", "val", "test")
HEIGHT, WIDTH = 40, 56


@dataclass(frozen=True)
class Referral:
    phrase: str
    category: str
    mask: np.ndarray


def referral(
    phrase: str = "the ship", category: str = "ship", box: tuple[int, int, int, int] = (3, 5, 20, 30)
) -> Referral:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return Referral(phrase, category, mask)


def write_scenes(root: Path) -> list[Referral]:
    """Four images, two expressions each, classes in an order that is not the alphabet's; gives the referrals back."""
    noise = np.random.default_rng(7)
    written = []
    with RRSISDWriter(root) as writer:
        for number, split in enumerate(SPLITS):
            image = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            ragged = Referral(f"a würfel {number}", "bridge", noise.random((HEIGHT, WIDTH)) > 0.6)
            referrals = [referral(f"the ship {number}"), ragged]
            writer.add(split, image, referrals)
            written += referrals
    return written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def refs_path(root: Path) -> Path:
    return root / "rrsisd" / REFS_FILE


def instances_path(root: Path) -> Path:
    return root / "rrsisd" / INSTANCES_FILE


def image_path(root: Path, number: int) -> Path:
    return root / IMAGE_FOLDER / f"{number:05d}.jpg"


def change_instances(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(instances_path(root).read_text())
    change(content)
    instances_path(root).write_text(json.dumps(content))


def change_refs(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    content = pickle.loads(refs_path(root).read_bytes())
    change(content)
    refs_path(root).write_bytes(pickle.dumps(content))


def refusal(action: Callable[[], object]) -> str:
    """The line with which bad input is refused."""
    with pytest.raises(BadInputError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


# Writing and reading


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


def test_annotation_files_may_lie_straight_in_the_root(root: Path) -> None:
    expected = open_dataset(root).samples
    for path in (refs_path(root), instances_path(root)):
        shutil.move(path, root / path.name)
    (root / "rrsisd").rmdir()
    assert open_dataset(root).samples == expected


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


def test_samples_are_grouped_by_image_in_a_stable_order(root: Path) -> None:
    samples = open_dataset(root).samples
    groups = group_by_image(samples[::2] + samples[1::2])
    assert [group[0].image_path.name for group in groups] == [f"{number:05d}.jpg" for number in (1, 2, 3, 4)]
    assert [[sample.sample_id for sample in group] for group in groups[:2]] == [["1", "2"], ["3", "4"]]


# Refusals


def test_an_unknown_split_names_those_that_exist(root: Path) -> None:
    line = refusal(lambda: open_dataset(root).split("validation"))
    assert "'validation'" in line
    assert "'train', 'val', 'test'" in line


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: open_dataset(tmp_path / "nowhere"))
    line = refusal(lambda: open_dataset(tmp_path))
    assert str(tmp_path) in line
    assert "rrsisd/refs(unc).p" in line


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
    sample = Sample("s7", "train", Path("a.jpg"), "the ship", "ship", rle)
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


# Pickles


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(root: Path, tmp_path: Path, protocol: int) -> None:
    refs_path(root).write_bytes(pickle.dumps([Bomb(tmp_path / "ran")], protocol=protocol))
    line = refusal(lambda: open_dataset(root))
    assert str(refs_path(root)) in line
    assert "contains code (posix.system): refused" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [np.int64(3), {1, 2}, frozenset({1}), bytearray(b"x"), Path("x"), 1 + 2j])
def test_only_plain_values_are_read(tmp_path: Path, value: object) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(pickle.dumps([value], protocol=2))
    assert "refused" in refusal(lambda: load_plain_pickle(path))


def test_plain_values_come_back_from_every_protocol(tmp_path: Path) -> None:
    values = [{"a": 1, "b": [None, True, -(10**30), 2.5, ("x", "y")], "ü": "ÿ", "again": "a"}]
    path = tmp_path / "values.p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        assert load_plain_pickle(path) == values


def test_strings_of_python_2_are_text(tmp_path: Path) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(b"(lp1\nS'the ship'\np2\na.")
    assert load_plain_pickle(path) == ["the ship"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04]",  # no end
        b"\x80\x04.",  # an empty stack
        b"\x80\x63N.",  # protocol 99
        b"]N}ub.",  # a stack that does not fit
        b"\x80\x02]K\x01b.",  # attributes set on a list
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a string longer than the file
        b"Ppersistent\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",  # an extension code
    ],
)
def test_corrupt_pickles_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(data)
    assert "values.p" in refusal(lambda: load_plain_pickle(path))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo index that would take 32 GiB
        b"\x80\x02]r\xff\xff\x0f\x00.",  # and one of 16 MiB, which any machine would give
        b"]p2000000000\n.",
        b"\x80\x02(" + b"]" * MAX_PICKLE_OBJECTS + b"l.",
    ],
)
def test_greedy_pickles_are_refused_before_they_are_served(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(data)
    assert "asks for far more memory" in refusal(lambda: load_plain_pickle(path))


def test_a_truncated_pickle_is_refused_wherever_it_ends(root: Path) -> None:
    data = refs_path(root).read_bytes()
    for end in range(0, len(data), 37):
        refs_path(root).write_bytes(data[:end])
        assert "cut off or corrupt" in refusal(lambda: open_dataset(root))


def test_deep_nesting_is_refused_without_a_crash(root: Path) -> None:
    refs_path(root).write_bytes(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".")
    assert REFS_FILE in refusal(lambda: open_dataset(root))


def test_a_huge_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "values.p"
    with path.open("wb") as stream:
        stream.truncate(MAX_PICKLE_BYTES + 1)
    assert "MiB" in refusal(lambda: load_plain_pickle(path))


# JSON lines


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


# The check


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
    assert found(root, phrase_too_long=lambda phrase: len(phrase.split()) > 64) == {
        Problem.EMPTY_PHRASE: (1, ("sample '1'",)),
        Problem.LONG_PHRASE: (1, ("sample '3'",)),
        Problem.REPEATED_SAMPLE: (1, ("sample '6'",)),
        Problem.REPEATED_ID: (1, ("sample '7'",)),
    }
    assert Problem.LONG_PHRASE not in found(root)
