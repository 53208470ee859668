"""``data check`` reports all problems of a data set in one pass, with one process or several."""

import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data import check
from rsrefseg.data.check import SplitCount, check_dataset
from rsrefseg.data.formats import open_dataset
from rsrefseg.data.masks import encode_mask
from rsrefseg.data.parallel import in_processes
from rsrefseg.data.phrase_length import phrase_counter
from rsrefseg.data.rrsisd_writer import write_rrsisd
from rsrefseg.data.verify import Problem, verify_samples
from rsrefseg.engines.errors import RSRefSegError
from tests.support import made_data
from tests.support.commands import run_here
from tests.support.made_data import (
    HEIGHT,
    WIDTH,
    change_instances,
    change_refs,
    image_path,
    refusal,
    respell,
    write_scenes,
)
from tests.support.made_formats import WRITERS, write_refsegrs
from tests.support.words import write_word_tokenizer

Capsys = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def found(root: Path, **options: Any) -> dict[Problem, int]:
    report = check_dataset(root, **options)
    return {Problem[one.problem.upper()]: one.count for one in (*report.faults, *report.notes)}


@pytest.mark.parametrize("name", WRITERS)
def test_a_sound_data_set_of_every_format_has_no_faults(tmp_path: Path, capsys: Capsys, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    ran = run_here(capsys, "data", "check", tmp_path / "set", "--json")
    document = json.loads(ran.out)
    assert ran.code == 0
    assert document["format"] == name
    assert document["faults"] == []
    notes = {note["problem"]: note["count"] for note in document["notes"]}
    assert notes == ({"no_target": 2} if name == "NWPU-Refer" else {})
    assert set(document["splits"]) == {"train", "val", "test"}


def copy_image(source: int, target: int) -> Spoil:
    """Write other bytes with the same pixels."""
    return lambda root: Image.open(image_path(root, source)).save(image_path(root, target), format="PNG")


def mask(number: int, **fields: Any) -> Spoil:
    return lambda root: change_instances(root, lambda c: c["annotations"][number]["segmentation"][0].update(fields))


def ref(number: int, **fields: Any) -> Spoil:
    return lambda root: change_refs(root, lambda refs: refs[number].update(fields))


def taller(root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(image_path(root, 3))


NOTHING = encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))
# How to spoil made scenes, what is found how often, and what its first example names.
SPOILED: list[tuple[Spoil, Problem, int, str]] = [
    (lambda root: image_path(root, 1).unlink(), Problem.MISSING_IMAGE, 1, "00001.jpg"),
    (lambda root: image_path(root, 2).write_text("not an image"), Problem.UNREADABLE_IMAGE, 1, "00002.jpg"),
    (taller, Problem.SIZE_DIFFERENCE, 2, "00003.jpg"),
    (mask(6, **NOTHING), Problem.EMPTY_MASK, 1, "sample '7'"),
    (mask(7, counts="52"), Problem.BROKEN_MASK, 1, "7 pixels"),
    (copy_image(4, 1), Problem.SHARED_BETWEEN_SPLITS, 1, "'00001.jpg' = '00004.jpg' in train and test"),
    (ref(1, split="test"), Problem.SHARED_BETWEEN_SPLITS, 1, "'00001.jpg' in train and test"),
    (copy_image(1, 2), Problem.REPEATED_IMAGE, 1, "'00001.jpg' = '00002.jpg'"),
    (respell(0, "  "), Problem.UNUSABLE_PHRASE, 1, "sample '1'"),
    (respell(1, "x" * 1001), Problem.UNUSABLE_PHRASE, 1, "sample '2'"),
    (respell(2, "word " * 80), Problem.LONG_PHRASE, 1, "sample '3' (81)"),
    (respell(5, "the ship 2"), Problem.REPEATED_SAMPLE, 1, "sample '6'"),
    (ref(7, ref_id=7), Problem.REPEATED_ID, 1, "sample '7'"),
]


@pytest.mark.parametrize(("spoil", "problem", "count", "example"), SPOILED)
def test_what_is_wrong_is_named(root: Path, spoil: Spoil, problem: Problem, count: int, example: str) -> None:
    spoil(root)
    report = check_dataset(root)
    notes = (Problem.EMPTY_MASK, Problem.REPEATED_IMAGE, Problem.LONG_PHRASE, Problem.REPEATED_SAMPLE)
    expected, others = (report.notes, report.faults) if problem in notes else (report.faults, report.notes)
    assert [(one.problem, one.count) for one in expected] == [(problem.name.lower(), count)]
    assert others == ()
    assert example in expected[0].examples[0]


def test_masks_that_will_be_resized_are_a_note(root: Path) -> None:
    taller(root)
    report = check_dataset(root, resize_masks=True)
    assert [(note.problem, note.count) for note in report.notes] == [("resized_mask", 2)]
    assert report.faults == ()


def test_mask_files_are_read(tmp_path: Path) -> None:
    root = write_refsegrs(tmp_path / "set")
    (root / "masks" / "7.tif").write_bytes(b"II*\0 cut short")
    Image.new("L", (32, 25), 255).save(root / "masks" / "13.tif")
    Image.new("L", (32, 24)).save(root / "masks" / "4.tif")
    assert found(root) == {Problem.BROKEN_MASK: 2, Problem.SIZE_DIFFERENCE: 1, Problem.EMPTY_MASK: 1}
    (root / "masks" / "7.tif").unlink()
    assert found(root)[Problem.MISSING_MASK] == 2
    assert str(root / "masks" / "7.tif") in refusal(lambda: verify_samples(open_dataset(root), ["train"]))
    verify_samples(open_dataset(root), ["val"], resize_masks=True)


def test_splits_that_train_and_eval_need_are_missed_unless_others_are_named(root: Path) -> None:
    change_refs(root, lambda refs: [ref.update(split="mine") for ref in refs if ref["split"] == "val"])
    assert found(root) == {Problem.MISSING_SPLIT: 1}
    assert found(root, splits=["mine", "test"]) == {}
    assert check_dataset(root, splits=["mine"]).splits.keys() == {"mine"}
    assert found(root, splits=["nowhere"]) == {Problem.MISSING_SPLIT: 1}
    change_refs(root, lambda refs: [ref.update(split="test") for ref in refs])
    assert found(root) == {}, "data to evaluate on alone"


def test_tokens_are_counted_by_the_tokenizer_that_reads_them(root: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_word_tokenizer(tmp_path / "siglip" / "tokenizer.json", ["the ship a bridge", "word"], 32)
    for number in range(8):
        respell(number, {2: "word " * 70, 3: "zzz"}.get(number, "the ship"))(root)
    for place in (tmp_path / "siglip", tmp_path / "siglip" / "tokenizer.json"):
        ran = run_here(capsys, "data", "check", root, "--tokenizer", place, "--json")
        document = json.loads(ran.out)
        assert (document["phrase_lengths"]["longest"], document["phrase_lengths"]["limit"]) == (71, 64)
        assert "long_phrase" in [note["problem"] for note in document["notes"]]
        assert ran.code == 1, "training would refuse a phrase without a known word"
        assert [fault["problem"] for fault in document["faults"]] == ["unusable_phrase"]


@pytest.mark.parametrize("text", ["左边的船 ship", "\udce9 ship", "ship " * 199])
def test_phrases_of_any_script_can_be_counted(tmp_path: Path, text: str) -> None:
    write_word_tokenizer(tmp_path / "tokenizer.json", ["the ship"], 32)
    assert min(phrase_counter(place)[0](text) for place in (tmp_path, None)) >= 2


def test_several_processes_report_what_one_does(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    image_path(root, 2).write_text("not an image")
    shutil.copy(image_path(root, 1), image_path(root, 4))
    alone = check_dataset(root)
    assert alone.splits == {"train": SplitCount(4, 2), "val": SplitCount(2, 1), "test": SplitCount(2, 1)}
    assert alone.categories == {"ship": 4, "bridge": 4}
    monkeypatch.setattr(check, "in_processes", partial(in_processes, jobs_per_process=1))
    assert check_dataset(root, workers=2) == alone
    assert [one.problem for one in alone.faults] == ["unreadable_image", "shared_between_splits"]
    assert "checking  4/4" in capsys.readouterr().err


def kill_oneself(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_work_in_one_line() -> None:
    with pytest.raises(RSRefSegError, match="fewer --workers"):
        list(in_processes(kill_oneself, [1, 2], 2, jobs_per_process=1))


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Memory holds only the digest and the annotation of each image (7 kB, mask 2 kB)."""
    peaks = []
    noise = np.random.default_rng(0)
    for images in (20, 120):
        scenes = (noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(images))
        write_rrsisd(tmp_path / f"{images}", (("train", image, [made_data.referral()]) for image in scenes))
        check_dataset(tmp_path / f"{images}")
        tracemalloc.start()
        check_dataset(tmp_path / f"{images}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 100 < 7000, "less than an image for each image more"
