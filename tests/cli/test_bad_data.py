"""Wrong data sets, folders, arguments and checkpoints raise a one-line error with exit code 2."""

import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsrefseg.data.masks import encode_mask
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from tests.support.commands import assert_refused, run_here
from tests.support.made_data import Bomb, change_instances, change_refs, refs_path
from tests.support.places import PHRASE, Capsys

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[Path], object]
TRAIN = ("train", "--data", "data", "--from-scratch")
EVALUATE = ("eval", "--data", "data", "--split", "val")


@pytest.fixture
def data(place: Path, boxes: Path) -> Path:
    """Return a data set that the test may change."""
    shutil.copytree(boxes, "data")
    return Path("data")


# Output


def test_output_folders_that_cannot_be_written(place: Path, data: Path, capsys: Capsys) -> None:
    Path("taken").write_text("a file")
    for out in ("taken", "taken/deeper", "/proc/rsrefseg"):
        for command in (
            ("infer", "scene.png", PHRASE, "--out", out),
            (*TRAIN, "--out", out),
            ("data", "synth", out, "--train", "1", "--val", "0", "--test", "0", "--size", "64"),
            ("data", "convert", "data", f"{out}/a.jsonl"),
        ):
            assert_refused(run_here(capsys, *command), out)
    assert Path("taken").read_text() == "a file"


def test_a_full_disk_is_reported_before_training(data: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    assert_refused(run_here(capsys, *TRAIN, "--out", "run"), "only 5 MiB free", "'run'")


# Data sets


def change_masks(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    return lambda data: change_instances(
        data, lambda content: [change(annotation["segmentation"]) for annotation in content["annotations"]]
    )


def change_each_ref(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda data: change_refs(data, lambda refs: [change(ref) for ref in refs])


def spoil_images(data: Path) -> None:
    for path in (data / IMAGE_FOLDER).iterdir():
        path.write_text("x")


def write_code(path: Path) -> None:
    path.write_bytes(pickle.dumps([Bomb(Path("harm"))]))


resize_masks = change_masks(lambda masks: masks[0].update(encode_mask(np.ones((30, 31), np.bool_))))
# How to spoil a data set, what the refusals of train and eval hold, and how `data check` ends: 1 with a report, or 2
# where the data set cannot be opened.
BAD_DATA: dict[str, tuple[Change, tuple[str, ...], int]] = {
    "missing": (shutil.rmtree, ("'data' does not exist",), 2),
    "code in it": (lambda data: write_code(refs_path(data)), ("refs(unc).p", "contains code", "mkdir"), 2),
    "images spoiled": (spoil_images, (str(IMAGE_FOLDER),), 1),
    "other mask sizes": (resize_masks, ("30x31", "--resize-masks"), 1),
    "broken masks": (change_masks(lambda masks: masks[0].update(counts="52")), ("broken masks", "7 pixels"), 1),
    "blank phrases": (change_each_ref(lambda ref: ref["sentences"][0].update(sent=" \n")), ("sample '", "phrase"), 1),
    "other splits": (change_each_ref(lambda ref: ref.update(split="mine")), ("in the split '", "'mine'"), 1),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_train_eval_and_data_check_refuse_the_same_data(fault: str, data: Path, capsys: Capsys) -> None:
    spoil, facts, checked = BAD_DATA[fault]
    spoil(data)
    for command in ((*TRAIN, "--out", "run"), (*EVALUATE, "--bundle", "bundle")):
        assert_refused(run_here(capsys, *command), *facts)
    ran = run_here(capsys, "data", "check", "data", "--split", "train", "--split", "val")
    assert ran.code == checked, ran.out
    if checked == 2:
        assert_refused(ran, *facts)
        assert_refused(run_here(capsys, "data", "convert", "data", "out.jsonl"), *facts)
        assert not Path("out.jsonl").exists()
    else:
        assert "FAULT" in ran.out
    assert not Path("harm").exists()
    assert not Path("run/last.safetensors").exists()


def test_data_that_is_refused_only_for_its_sizes_is_taken_resized(data: Path, capsys: Capsys) -> None:
    resize_masks(data)
    assert run_here(capsys, "data", "check", "data", "--resize-masks").code == 0
    assert run_here(capsys, *EVALUATE, "--base", "--resize-masks").code == 0


# Arguments: what the options of training refuse is in tests/rsrefseg/train/test_train_settings.py.


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["data", "synth", "out", "--domain", "C"], "unknown domain 'C'"),
        (["data", "synth", "data/images"], "data/images"),
        (["data", "convert", "data", "/proc"], "/proc"),
        (["train", "--data", "data", "--preset", "huge"], "preset is 'huge'"),
        (["train", "--data", "data", "--base", "nowhere.safetensors"], "'nowhere.safetensors' do"),
        (["train", "--data", "data", "--resume"], "no run under 'runs'"),
        (["train", "--data", "data", "--preset", "b", "--sam", "no.pth", "--siglip", "no"], "'no.pth' does not exist"),
        ([*EVALUATE, "--protocol", "mine"], "unknown protocol 'mine'"),
        (["eval", "--data", "data", "--split", "tets", "--bundle", "bundle"], "'train', 'val'"),
        ([*EVALUATE, "--run", "nowhere"], "'nowhere' is not a run"),
        ([*EVALUATE, "--run", "scene.png"], "scene.png"),
        (EVALUATE, "no run under 'runs'"),
        ([*EVALUATE, "--run", "data"], "'data' is not a run"),
        ([*EVALUATE, "--bundle", "none"], "no bundle at 'none'"),
        ([*EVALUATE, "--run", "a", "--bundle", "bundle"], "name different models"),
        ([*EVALUATE, "--run", "a", "--backend", "auto"], "name different models"),
        ([*EVALUATE, "--run", "a", "--base"], "name different models"),
        ([*EVALUATE, "--bundle", "bundle", "--base"], "name different models"),
        ([*EVALUATE, "--worst-cases", "worst.jpg"], "use the suffix .png"),
        ([*EVALUATE, "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["merge", "nowhere"], "'nowhere' is not a run"),
        (["merge"], "no run under 'runs'"),
        (["export"], "no run under 'runs'"),
        (["export", "nowhere"], "'nowhere' is not a run"),
        (["export", "nowhere", "--out", "data"], "'data' exists and is not a bundle"),
        (["export", "--random-weights", "huge"], "unknown preset 'huge'"),
        (["parity", "--data", "data", "--split", "val"], "no run under 'runs'"),
        (["bench", "--backends", "torch"], "no run under 'runs'"),
        (["bench", "--backends", " , "], "--backends"),
        (["convert", "no.pth", "--out", "run", "--preset", "huge"], "unknown preset 'huge'"),
        (["convert", "no.pth", "--out", "run"], "the checkpoint 'no.pth' is not a file"),
        (["convert", "scene.png", "--out", "run"], "'scene.png' is neither a safetensors file nor a checkpoint"),
        (["data", "check", "data", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["data", "convert", "data", "out.jsonl", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["data", "check", "data", "--tokenizer", "nowhere"], "tokenizer 'nowhere' does not exist"),
        (["data", "check", "data", "--tokenizer", "scene.png"], "'scene.png'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | tuple) else None,
)
def test_arguments_that_name_nothing(arguments: list[str], fact: str, data: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, *arguments), fact)


# Checkpoints


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"model": Bomb(Path("harm"))}, path),
        write_code,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    ],
    ids=["torch", "pickle", "empty", "a header of an exabyte"],
)
def test_bases_of_other_formats_are_refused_unread(write: Change, data: Path, small_base: Path, capsys: Capsys) -> None:
    write(Path("base.safetensors"))
    shutil.copy(small_base.with_name("tokenizer.json"), "tokenizer.json")
    ran = run_here(capsys, "train", "--data", "data", "--base", "base.safetensors", "--out", "run")
    assert_refused(ran, "base.safetensors' is not a complete safetensors file")
    assert not Path("harm").exists()
