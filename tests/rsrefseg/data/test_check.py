"""``data check``: everything that is wrong with a data set, in one pass, by one process or several."""

import json
import os
import shutil
import signal
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data import check, parallel
from rsrefseg.data.check import check_dataset
from rsrefseg.data.formats import open_dataset
from rsrefseg.data.masks import encode_mask
from rsrefseg.data.parallel import in_processes
from rsrefseg.data.phrase_length import phrase_rule
from rsrefseg.data.rrsisd_writer import write_rrsisd
from rsrefseg.data.verify import Problem, verify_samples
from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.model.tokenizer import write_word_tokenizer
from tests.support.commands import run_here
from tests.support.made_data import (
    HEIGHT,
    WIDTH,
    change_instances,
    change_refs,
    image_path,
    referral,
    refusal,
    write_scenes,
)
from tests.support.made_formats import write_nwpu, write_refsegrs, write_risbench

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def found(root: Path, **options: Any) -> dict[Problem, tuple[int, tuple[str, ...]]]:
    report = check_dataset(root, **options)
    assert set(report.faults) | set(report.notes) == set(report.findings)
    assert all(finding.problem.is_fault for finding in report.faults)
    return {finding.problem: (finding.count, finding.examples) for finding in report.findings}


@pytest.mark.parametrize("write", [write_scenes, write_refsegrs, write_risbench, write_nwpu])
def test_a_sound_data_set_of_every_format_has_no_faults(tmp_path: Path, capsys: Capsys, write: Any) -> None:
    write(tmp_path / "set")
    ran = run_here(capsys, "data", "check", tmp_path / "set", "--json")
    document = json.loads(ran.out)
    assert ran.code == 0
    assert document["format"] == open_dataset(tmp_path / "set").name
    assert document["faults"] == []
    notes = {note["problem"]: note["count"] for note in document["notes"]}
    assert notes == ({"no_target": 2} if write is write_nwpu else {})
    assert set(document["splits"]) == {"train", "val", "test"}


def test_the_report_counts(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = check_dataset(root, progress=lambda done, total: steps.append((done, total)))
    assert {name: (split.samples, split.images) for name, split in report.splits.items()} == {
        "train": (4, 2),
        "val": (2, 1),
        "test": (2, 1),
    }
    assert report.categories == {"ship": 4, "bridge": 4}
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "val: 2 expressions on 1 images" in report.render()


def test_what_is_wrong_with_images_and_masks(root: Path) -> None:
    image_path(root, 1).unlink()
    image_path(root, 2).write_text("not an image")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(image_path(root, 3))

    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][6]["segmentation"] = [encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))]
        content["annotations"][7]["segmentation"][0]["counts"] = "52"

    change_instances(root, spoil)
    problems = found(root)
    faults = {
        Problem.MISSING_IMAGE: 1,
        Problem.UNREADABLE_IMAGE: 1,
        Problem.SIZE_DIFFERENCE: 2,
        Problem.BROKEN_MASK: 1,
    }
    assert {problem: count for problem, (count, _) in problems.items()} == faults | {Problem.EMPTY_MASK: 1}
    assert "00001.jpg" in problems[Problem.MISSING_IMAGE][1][0]
    assert "00002.jpg" in problems[Problem.UNREADABLE_IMAGE][1][0]
    assert {finding.problem for finding in check_dataset(root).faults} == set(faults)
    resized = check_dataset(root, resize_masks=True)
    assert Problem.RESIZED_MASK in {finding.problem for finding in resized.notes}
    assert Problem.SIZE_DIFFERENCE not in {finding.problem for finding in resized.findings}


def test_mask_files_are_read(tmp_path: Path) -> None:
    root = write_refsegrs(tmp_path / "set")
    (root / "masks" / "7.tif").write_bytes(b"II*\0 cut short")
    Image.new("L", (32, 25), 255).save(root / "masks" / "13.tif")
    Image.new("L", (32, 24)).save(root / "masks" / "4.tif")
    counts = {problem: count for problem, (count, _) in found(root).items()}
    assert counts == {Problem.BROKEN_MASK: 2, Problem.SIZE_DIFFERENCE: 1, Problem.EMPTY_MASK: 1}
    (root / "masks" / "7.tif").unlink()
    assert found(root)[Problem.MISSING_MASK][0] == 2
    assert str(root / "masks" / "7.tif") in refusal(lambda: verify_samples(open_dataset(root), ["train"]))
    verify_samples(open_dataset(root), ["val"], resize_masks=True)


def test_one_image_in_two_splits_is_found(root: Path) -> None:
    with Image.open(image_path(root, 4)) as image:
        image.save(image_path(root, 1), format="PNG")  # other bytes, same pixels
    assert found(root) == {Problem.SHARED_BETWEEN_SPLITS: (1, ("'00001.jpg' = '00004.jpg' in train and test",))}
    write_scenes(root.with_name("other"))
    change_refs(root.with_name("other"), lambda refs: refs[1].update(split="test"))
    assert found(root.with_name("other")) == {Problem.SHARED_BETWEEN_SPLITS: (1, ("'00001.jpg' in train and test",))}


def test_a_copy_within_a_split_is_a_note(root: Path) -> None:
    shutil.copy(image_path(root, 1), image_path(root, 2))
    assert found(root) == {Problem.REPEATED_IMAGE: (1, ("'00001.jpg' = '00002.jpg'",))}
    assert check_dataset(root).faults == ()


def test_phrases_and_ids(root: Path) -> None:
    def spoil(refs: list[dict[str, Any]]) -> None:
        refs[0]["sentences"][0]["sent"] = "  "
        refs[1]["sentences"][0]["sent"] = "x" * 1001
        refs[2]["sentences"][0]["sent"] = "word " * 80
        refs[5]["sentences"][0]["sent"] = refs[4]["sentences"][0]["sent"]
        refs[7]["ref_id"] = refs[6]["ref_id"]

    change_refs(root, spoil)
    problems = found(root)
    assert {problem: count for problem, (count, _) in problems.items()} == {
        Problem.UNUSABLE_PHRASE: 2,
        Problem.LONG_PHRASE: 1,
        Problem.REPEATED_SAMPLE: 1,
        Problem.REPEATED_ID: 1,
    }
    assert problems[Problem.LONG_PHRASE][1] == ("sample '3' (81)",)
    assert "sample '1'" in problems[Problem.UNUSABLE_PHRASE][1][0]


def test_splits_that_train_and_eval_need_are_missed_unless_others_are_named(root: Path) -> None:
    change_refs(root, lambda refs: [ref.update(split="mine") for ref in refs if ref["split"] == "val"])
    assert found(root) == {Problem.MISSING_SPLIT: (1, ("'val'",))}
    assert found(root, splits=["mine", "test"]) == {}
    assert check_dataset(root, splits=["mine"]).splits.keys() == {"mine"}
    assert found(root, splits=["nowhere"])[Problem.MISSING_SPLIT] == (1, ("'nowhere'",))
    change_refs(root, lambda refs: [ref.update(split="test") for ref in refs])
    assert found(root) == {}, "data to evaluate on alone"


# How long a phrase is


def test_tokens_are_counted_by_the_tokenizer_that_reads_them(root: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_word_tokenizer(tmp_path / "siglip" / "tokenizer.json", ["the ship a bridge", "word"], 32)

    def lengthen(refs: list[dict[str, Any]]) -> None:
        for entry in refs:
            entry["sentences"][0]["sent"] = "the ship"
        refs[2]["sentences"][0]["sent"] = "word " * 70
        refs[3]["sentences"][0]["sent"] = "zzz"

    change_refs(root, lengthen)
    for place in (tmp_path / "siglip", tmp_path / "siglip" / "tokenizer.json"):
        ran = run_here(capsys, "data", "check", root, "--tokenizer", place, "--json")
        document = json.loads(ran.out)
        counted = f"tokens of '{place}', the end token among them"
        assert document["phrase_lengths"] == {"longest": 71, "limit": 64, "counted": counted}
        assert "long_phrase" in [note["problem"] for note in document["notes"]]
        assert ran.code == 1, "training would refuse a phrase without a known word"
        assert [fault["problem"] for fault in document["faults"]] == ["unusable_phrase"]


def test_phrases_of_any_script_can_be_counted(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "tokenizer.json", ["the ship"], 32)
    for phrase in ("左边的船 ship", "\udce9 ship", "ship " * 199):
        assert phrase_rule(tmp_path).count(phrase) >= 2
        assert phrase_rule().count(phrase) >= 2


# Several processes


def test_several_processes_report_what_one_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_path(root, 2).write_text("no picture")
    shutil.copy(image_path(root, 1), image_path(root, 4))
    alone = check_dataset(root)
    monkeypatch.setattr(check, "in_processes", partial(in_processes, jobs_per_process=1))
    steps: list[tuple[int, int]] = []
    shared = check_dataset(root, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert shared.as_dict() == alone.as_dict()
    assert {finding.problem for finding in alone.findings} == {Problem.UNREADABLE_IMAGE, Problem.SHARED_BETWEEN_SPLITS}
    assert steps == [(done, 4) for done in range(1, 5)]


def kill_oneself(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interruptible(job: int) -> bool:
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_is_killed_ends_the_work_in_one_line() -> None:
    with pytest.raises(RSRefSegError, match="fewer --workers"):
        list(in_processes(kill_oneself, [1, 2], 2, jobs_per_process=1))


def test_an_interruption_reaches_the_process_that_was_started_alone() -> None:
    assert list(in_processes(interruptible, [1, 2], 2, jobs_per_process=1)) == [False, False]
    assert interruptible(1)


def test_few_images_are_read_by_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(parallel, "ProcessPoolExecutor")
    assert list(in_processes(str, range(99), 8)) == [str(number) for number in range(99)]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Each image takes 7 kB and its mask 2 kB; what is kept of it is its digest and its annotation."""
    peaks = []
    noise = np.random.default_rng(0)
    for images in (20, 120):
        pictures = (noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(images))
        write_rrsisd(tmp_path / f"{images}", (("train", image, [referral()]) for image in pictures))
        check_dataset(tmp_path / f"{images}")
        tracemalloc.start()
        check_dataset(tmp_path / f"{images}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 100 < 7000, "less than an image for each image more"
