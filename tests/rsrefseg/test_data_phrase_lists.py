"""RefSegRS and RISBench: lists of expressions, and masks that are image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.check import Problem, check_dataset
from rsrefseg.data.loading import load_pair, verify_images
from rsrefseg.data.samples import open_dataset
from tests.support.made_data import refusal
from tests.support.made_formats import (
    HEIGHT,
    LINES,
    WIDTH,
    mask_of,
    picture,
    write_lists,
    write_refsegrs,
    write_risbench,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_refsegrs(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "images", "masks", "suffix", "named"),
    [
        ("RefSegRS", "images", "masks", ".tif", ""),
        ("RefSegRS", "images", "masks", ".tif", ".tif"),
        ("RISBench", "img_rgb", "mask", ".png", ".png"),
        ("RISBench", "img_rgb", "masks", ".png", ""),
        ("RISBench", "images", "mask", ".png", ".png"),
        ("RISBench", "images", "masks", ".png", ""),
    ],
)
def test_every_layout_gives_the_same_samples(
    tmp_path: Path, name: str, images: str, masks: str, suffix: str, named: str
) -> None:
    root = write_lists(tmp_path / "set", images, masks, suffix, named)
    dataset = open_dataset(root)
    assert dataset.name == name
    assert dataset.splits == ("train", "val", "test")
    assert tuple((sample.split, sample.image_path.stem, sample.phrase) for sample in dataset.samples) == LINES
    assert [sample.sample_id for sample in dataset.samples] == ["train-1", "train-2", "val-1", "test-1"]
    for sample in dataset.samples:
        pair = load_pair(sample)
        number = int(sample.image_path.stem)
        np.testing.assert_array_equal(pair.image, np.asarray(picture(number)))
        np.testing.assert_array_equal(pair.mask, mask_of(number))
        assert sample.mask_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("form", ["three channels", "one bit", "ones", "alpha", "palette", "16 bits"])
def test_whatever_is_not_black_is_foreground(root: Path, form: str) -> None:
    mask = mask_of(7)
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    path = root / "masks" / "7.tif"
    if form == "three channels":
        Image.fromarray(np.stack([mask * 0, mask * 3, mask * 0], axis=2).astype(np.uint8)).save(path)
    elif form == "one bit":
        grey.convert("1").save(path)
    elif form == "ones":
        Image.fromarray(mask.astype(np.uint8)).save(path)
    elif form == "alpha":
        path.unlink()
        grey.convert("RGBA").save(path.with_suffix(".png"))
    elif form == "palette":
        indexed = Image.frombytes("P", (WIDTH, HEIGHT), mask.astype(np.uint8).tobytes())
        indexed.putpalette([0, 0, 0, 128, 0, 0])
        indexed.save(path)
    else:
        Image.fromarray(mask.astype(np.uint16) * 65535).save(path)
    np.testing.assert_array_equal(open_dataset(root).samples[0].mask(), mask)


def test_masks_are_not_read_before_they_are_wanted(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.write_bytes(b"not an image")
    sample = open_dataset(root).samples[0]
    line = refusal(sample.mask)
    assert "'train-1'" in line
    assert str(root / "masks" / "7.tif") in line


def test_samples_of_one_mask_file_mean_the_same_object(root: Path) -> None:
    first, second, other, _ = open_dataset(root).samples
    assert first.mask_source == second.mask_source
    assert first.mask_source != other.mask_source
    before = first.mask_fingerprint
    assert before == second.mask_fingerprint != other.mask_fingerprint
    Image.fromarray(mask_of(9)).save(root / "masks" / "7.tif")
    assert first.mask_fingerprint != before


def test_lists_come_with_windows_line_ends_marks_and_blank_lines(root: Path) -> None:
    (root / "output_phrase_train.txt").write_bytes("\ufeff7  the ship \r\n\r\n  13\tit\r\n4 last".encode())
    samples = open_dataset(root).split("train")
    assert [(sample.sample_id, sample.image_path.name, sample.phrase) for sample in samples] == [
        ("train-1", "7.tif", "the ship"),
        ("train-3", "13.tif", "it"),
        ("train-4", "4.tif", "last"),
    ]


def test_a_mask_may_have_another_suffix_than_its_image(root: Path) -> None:
    (root / "masks" / "7.tif").rename(root / "masks" / "7.png")
    assert open_dataset(root).samples[0].mask_source.file == root / "masks" / "7.png"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"7 the ship\n13\n", "line 2 of"),
        (b"../7 the ship\n", "outside the image folder"),
        (b"/etc/passwd the ship\n", "outside the image folder"),
        (b". the ship\n", "no file name"),
        (b"7 the \xff ship\n", "no UTF-8 text"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named(root: Path, text: bytes, expected: str) -> None:
    (root / "output_phrase_val.txt").write_bytes(text)
    line = refusal(lambda: open_dataset(root))
    assert expected in line
    assert str(root / "output_phrase_val.txt") in line


def test_a_list_of_an_unknown_split_is_refused(root: Path) -> None:
    (root / "output_phrase_val.txt").rename(root / "output_phrase_val3.txt")
    assert "names the split 'val3', not train, val, test" in refusal(lambda: open_dataset(root))


def test_a_split_without_a_list_is_not_there(root: Path) -> None:
    (root / "output_phrase_val.txt").unlink()
    assert "its splits: 'train', 'test'" in refusal(lambda: open_dataset(root).split("val"))


def test_lists_without_any_line_hold_no_sample(root: Path) -> None:
    for path in root.glob("*.txt"):
        path.write_text("\n")
    assert "holds no sample" in refusal(lambda: open_dataset(root))


@pytest.mark.parametrize(("folder", "way_out"), [("images", "--images"), ("masks", "complete the download")])
def test_a_missing_folder_is_named(root: Path, folder: str, way_out: str) -> None:
    moved = (root / folder).rename(root / "elsewhere")
    line = refusal(lambda: open_dataset(root))
    assert str(root / folder) in line
    assert way_out in line
    if folder == "images":
        verify_images(open_dataset(root, images=moved), ["train"])


def test_risbench_names_both_folders_it_looked_for(tmp_path: Path) -> None:
    root = write_risbench(tmp_path / "set")
    (root / "img_rgb").rename(root / "pictures")
    line = refusal(lambda: open_dataset(root))
    assert str(root / "img_rgb") in line
    assert "'images'" in line


@pytest.mark.parametrize(("folder", "what"), [("images", "images"), ("masks", "masks")])
def test_a_name_without_image_or_mask_is_told_before_a_run_and_by_the_check(root: Path, folder: str, what: str) -> None:
    (root / folder / "7.tif").unlink()
    dataset = open_dataset(root)
    verify_images(dataset, ["val", "test"])
    line = refusal(lambda: verify_images(dataset, ["train"]))
    assert f"1 of 1 {what}" in line
    assert str(root / folder / "7.tif") in line
    assert "7.tif" in refusal(lambda: load_pair(dataset.samples[0]))
    problem = Problem.MISSING_IMAGE if folder == "images" else Problem.MISSING_MASK
    assert [finding.problem for finding in check_dataset(root).faults] == [problem]


def test_the_check_reads_mask_files(root: Path) -> None:
    (root / "masks" / "7.tif").write_bytes(b"II*\0 cut short")
    Image.new("L", (WIDTH, HEIGHT + 1), 255).save(root / "masks" / "13.tif")
    Image.new("L", (WIDTH, HEIGHT)).save(root / "masks" / "4.tif")
    found = {finding.problem: finding.count for finding in check_dataset(root).findings}
    assert found == {Problem.BROKEN_MASK: 2, Problem.SIZE_DIFFERENCE: 1, Problem.EMPTY_MASK: 1}
