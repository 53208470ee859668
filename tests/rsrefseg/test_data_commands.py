"""``data check`` and ``data convert`` as a user meets them: images elsewhere, phrases counted, work shared out."""

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.data import parallel as reading
from rsrefseg.data.check import Problem, check_dataset
from rsrefseg.data.jsonl import export_jsonl
from rsrefseg.data.parallel import in_processes
from rsrefseg.data.phrase_length import phrase_rule
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from rsrefseg.data.rrsisd_writer import RRSISDWriter
from rsrefseg.data.samples import open_dataset
from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.model.tokenizer import write_word_tokenizer
from tests.support.commands import assert_refused, run_here
from tests.support.made_data import HEIGHT, WIDTH, change_refs, image_path, referral, write_scenes

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "scenes")
    return Path("scenes")


def lengthen(root: Path, words: int) -> None:
    change_refs(root, lambda refs: refs[2]["sentences"][0].update(sent="word " * words))


# Images elsewhere


def test_images_that_lie_elsewhere_are_named_and_found(root: Path, capsys: Capsys) -> None:
    export_jsonl(open_dataset(root), Path("elsewhere/scenes.jsonl"))
    assert_refused(run_here(capsys, "data", "check", "elsewhere/scenes.jsonl"), "--images")
    assert_refused(run_here(capsys, "data", "convert", "elsewhere/scenes.jsonl", "out.jsonl"), "--images")
    images = ["--images", root / IMAGE_FOLDER]
    assert run_here(capsys, "data", "check", "elsewhere/scenes.jsonl", *images).code == 0
    assert run_here(capsys, "data", "convert", "elsewhere/scenes.jsonl", "out.jsonl", *images).code == 0
    assert Path("out.jsonl").read_bytes() == Path("elsewhere/scenes.jsonl").read_bytes()


def test_any_format_takes_its_images_from_elsewhere(root: Path, capsys: Capsys) -> None:
    shutil.move(root / IMAGE_FOLDER, "pictures")
    assert_refused(run_here(capsys, "data", "check", root), "--images")
    checked = run_here(capsys, "data", "check", root, "--images", "pictures")
    assert checked.code == 0, checked.err
    assert "no faults" in checked.out


# Phrases


def test_words_are_counted_where_no_tokenizer_is_named(root: Path, capsys: Capsys) -> None:
    lengthen(root, 63)
    fits = run_here(capsys, "data", "check", root)
    assert "longest phrase: 64 of 64 (words and the end token; --tokenizer counts" in fits.out
    assert "phrases longer" not in fits.out
    lengthen(root, 64)
    cut = run_here(capsys, "data", "check", root)
    assert "note   1 phrases longer than the model reads (their end is cut off): sample '3' (65)" in cut.out
    assert cut.code == 0, "its end is cut off, which training does on purpose"


def test_tokens_are_counted_by_a_tokenizer_from_file_or_folder(root: Path, capsys: Capsys) -> None:
    write_word_tokenizer(Path("siglip/tokenizer.json"), ["the ship", "word"], 32)
    lengthen(root, 70)
    for place in ("siglip", "siglip/tokenizer.json"):
        ran = run_here(capsys, "data", "check", root, "--tokenizer", place, "--json")
        document = json.loads(ran.out)
        counted = f"tokens of '{place}', the end token among them"
        assert document["phrase_lengths"] == {"longest": 71, "limit": 64, "counted": counted}
        assert [note["problem"] for note in document["notes"]] == ["long_phrase"]


def test_a_sentencepiece_model_counts_too(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["the ship at the quay", "a large airport terminal", "storage tanks and bridges"] * 20
    with (tmp_path / "spiece.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_writer=stream,
            vocab_size=30,
            hard_vocab_limit=False,
            model_type="unigram",
            minloglevel=2,
        )
    count = phrase_rule(tmp_path).count
    assert count("the ship") > 2, "pieces and the end token"
    assert count("the ship at the quay") > count("the ship")


@pytest.mark.parametrize("phrase", ["", "  ", "x" * 5000, "左边的船", "\udce9 ship"])
def test_phrases_of_any_kind_can_be_counted(phrase: str, tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "tokenizer.json", ["the ship"], 32)
    assert phrase_rule(tmp_path).count(phrase) >= 1
    assert phrase_rule().count(phrase) >= 1


# The report


def test_the_report_counts_splits_and_classes(root: Path, capsys: Capsys) -> None:
    out = run_here(capsys, "data", "check", root).out
    for line in ("train: 4 expressions on 2 images", "val: 2 expressions on 1 images", "classes: ship 4, bridge 4"):
        assert line in out


def test_faults_end_with_1_and_are_printed_all_the_same(root: Path, capsys: Capsys) -> None:
    image_path(root, 1).unlink()
    image_path(root, 2).write_text("no picture")
    ran = run_here(capsys, "data", "check", root)
    assert ran.code == 1
    assert "FAULT  1 missing images" in ran.out
    assert "FAULT  1 unreadable images" in ran.out
    assert ran.err.splitlines()[-1] == "rsrefseg: 'scenes' has 2 kinds of faults that would spoil training"


# Work shared out


def test_several_processes_report_what_one_does(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image_path(root, 2).write_text("no picture")
    shutil.copy(image_path(root, 1), image_path(root, 4))
    alone = check_dataset(root)
    monkeypatch.setattr(reading, "_LEAST_JOBS_A_PROCESS", 1)
    steps: list[tuple[int, int]] = []
    shared = check_dataset(root, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert shared == alone
    assert {finding.problem for finding in alone.findings} == {
        Problem.UNREADABLE_IMAGE,
        Problem.SHARED_BETWEEN_SPLITS,
    }
    assert steps == [(done, 4) for done in range(1, 5)]


def kill_oneself(job: int) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_work_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LEAST_JOBS_A_PROCESS", 1)
    with pytest.raises(RSRefSegError, match="try again with fewer --workers"):
        list(in_processes(kill_oneself, [1, 2], 2))


def test_few_images_are_read_by_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pool(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process is started for a handful of images")

    monkeypatch.setattr(reading, "ProcessPoolExecutor", no_pool)
    assert list(in_processes(str, range(99), 8)) == [str(number) for number in range(99)]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Each picture takes 7 kB and its mask 2 kB; what is kept of it is its digest and its annotation."""
    peaks = []
    noise = np.random.default_rng(0)
    for images in (20, 120):
        with RRSISDWriter(tmp_path / f"{images}") as writer:
            for _ in range(images):
                writer.add("train", noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), [referral()])
        check_dataset(tmp_path / f"{images}")
        tracemalloc.start()
        check_dataset(tmp_path / f"{images}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 100 < 7000, "less than a picture for each picture more"
