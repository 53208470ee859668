"""Data sets, folders, arguments and checkpoints a user may get wrong: one clear line that names it, exit code 2."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsrefseg.data.masks import encode_mask
from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported
from tests.support.made_bundle import make_bundle
from tests.support.places import PHRASE, Capsys, beside_bundle, cut_in_half, picture

RRSISD = Path("rrsisd")
IMAGES = Path("images/rrsisd/JPEGImages")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return beside_bundle(made, tmp_path, monkeypatch)


@pytest.fixture
def data(place: Path, boxes: Path) -> Path:
    """A data set of one's own, to be spoiled."""
    shutil.copytree(boxes, "data")
    return Path("data")


# Output


def test_output_folders_that_cannot_be_written(place: Path, data: Path, capsys: Capsys) -> None:
    Path("taken").write_text("a file")
    for out in ("taken", "taken/deeper", "/proc/rsrefseg"):
        assert_refused(run_here(capsys, "infer", "scene.png", PHRASE, "--out", out), out)
        train = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", out)
        assert_refused(train, out)
        synth = run_here(capsys, "data", "synth", out, "--train", "1", "--val", "0", "--test", "0", "--size", "64")
        assert_refused(synth, out)
        assert_refused(run_here(capsys, "data", "convert", "data", f"{out}/a.jsonl"), out)
    assert_refused(run_here(capsys, "data", "convert", "data", "/proc"), "/proc")
    assert Path("taken").read_text() == "a file"


ON_A_FULL_DISK = """
    import io, json, sys
    from contextlib import redirect_stderr, redirect_stdout
    from rsrefseg import cli

    for arguments in json.loads(sys.argv[1]):
        told = io.StringIO()
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            code, _ = cli.run_command(arguments)
        print(json.dumps([code, told.getvalue()]))
"""


def test_a_disk_that_is_really_full(place: Path, data: Path, exported: Exported) -> None:
    """A disk of 128 kB, mounted in a namespace of its own."""
    disk = place / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=128k tmpfs '{disk}'"
    probe = ["unshare", "-rm", "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    picture(400, 400).save("large.png")
    Path("full.py").write_text(textwrap.dedent(ON_A_FULL_DISK))
    commands = [
        ["infer", "large.png", PHRASE, "--out", f"{disk}/results"],
        ["data", "synth", f"{disk}/scenes", "--train", "9", "--val", "0", "--test", "0"],
        ["train", "--data", "data", "--from-scratch", "--out", f"{disk}/run"],
        ["export", str(exported.run), "--out", f"{disk}/bundle"],
    ]
    Path("commands.json").write_text(json.dumps(commands))
    script = f"{mount} && exec '{sys.executable}' full.py \"$(cat commands.json)\""
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ran) == len(commands)
    for (code, told), arguments in zip(ran, commands, strict=True):
        assert code == 2, (arguments, told)
        assert told.count("\n") == 1, told
        assert str(disk) in told
        assert "no space left" in told or "MiB free" in told


def test_a_disk_that_is_nearly_full_is_told_before_training(
    data: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    ran = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", "run")
    assert_refused(ran, "only 5 MiB free", "'run'")


# Data sets


class Bomb:
    """Runs a command when it is unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def write_bomb(data: Path) -> None:
    (data / RRSISD / "refs(unc).p").write_bytes(pickle.dumps([Bomb()]))


def change_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil(data: Path) -> None:
        path = data / RRSISD / "instances.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")

    return spoil


def change_phrase(phrase: str) -> Callable[[Path], Any]:
    def spoil(data: Path) -> None:
        path = data / RRSISD / "refs(unc).p"
        refs = pickle.loads(path.read_bytes())
        for ref in refs[:1] + refs[-1:]:
            ref["sentences"][0]["sent"] = phrase
        path.write_bytes(pickle.dumps(refs))

    return spoil


def resize_masks(document: dict[str, Any]) -> None:
    for annotation in document["annotations"]:
        annotation["segmentation"] = [encode_mask(np.ones((30, 31), np.bool_))]


def break_masks(document: dict[str, Any]) -> None:
    for annotation in document["annotations"]:
        annotation["segmentation"][0]["counts"] = "52"


def remove_splits(data: Path) -> None:
    path = data / RRSISD / "refs(unc).p"
    path.write_bytes(pickle.dumps([ref | {"split": "mine"} for ref in pickle.loads(path.read_bytes())]))


# How to spoil a data set, what the refusals of train and eval hold, and how `data check` ends: 1 with a report, or 2
# where the data set cannot be opened.
BAD_DATA: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], int]] = {
    "missing": (lambda data: shutil.rmtree(data), ("'data' does not exist",), 2),
    "another folder": (lambda data: (shutil.rmtree(data), data.mkdir()), ("'data'", "known format"), 2),
    "code in it": (write_bomb, ("refs(unc).p", "contains code", "mkdir"), 2),
    "no annotations": (lambda data: (data / RRSISD / "instances.json").unlink(), ("instances.json' is missing",), 2),
    "annotations cut": (lambda data: cut_in_half(data / RRSISD / "instances.json"), ("instances.json", "cut off"), 2),
    "expressions cut": (lambda data: cut_in_half(data / RRSISD / "refs(unc).p"), ("refs(unc).p", "cut off"), 2),
    "no image folder": (lambda data: shutil.rmtree(data / IMAGES), ("image folder", "missing"), 2),
    "images missing": (lambda data: [path.unlink() for path in (data / IMAGES).iterdir()], ("missing images",), 1),
    "images spoiled": (lambda data: [path.write_text("x") for path in (data / IMAGES).iterdir()], (str(IMAGES),), 1),
    "other mask sizes": (change_json(resize_masks), ("its mask is 30x31", "--resize-masks"), 1),
    "broken masks": (change_json(break_masks), ("broken masks", "7 pixels"), 1),
    "blank phrase": (change_phrase(" \n"), ("sample '", "phrase"), 1),
    "endless phrase": (change_phrase("word " * 300), ("sample '", "1500 characters"), 1),
    "other splits": (remove_splits, ("in the split '", "'mine'"), 1),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_train_eval_and_data_check_refuse_the_same_data(fault: str, data: Path, capsys: Capsys) -> None:
    spoil, told, checked = BAD_DATA[fault]
    spoil(data)
    evaluated = ("eval", "--data", "data", "--split", "val", "--bundle", "bundle")
    for command in (("train", "--data", "data", "--from-scratch", "--out", "run"), evaluated):
        assert_refused(run_here(capsys, *command), *told)
    ran = run_here(capsys, "data", "check", "data", "--split", "train", "--split", "val")
    assert ran.code == checked, ran.out
    if checked == 2:
        assert_refused(ran, *told)
        assert_refused(run_here(capsys, "data", "convert", "data", "out.jsonl"), *told)
        assert not Path("out.jsonl").exists()
    else:
        assert "FAULT" in ran.out
    assert not Path("harm").exists()
    assert not Path("run/last.safetensors").exists()


def test_data_that_is_refused_only_for_its_sizes_is_taken_resized(data: Path, capsys: Capsys) -> None:
    change_json(resize_masks)(data)
    splits = ("--split", "train", "--split", "val")
    assert run_here(capsys, "data", "check", "data", *splits, "--resize-masks").code == 0
    given = ("eval", "--data", "data", "--split", "val", "--base", "--resize-masks")
    assert run_here(capsys, *given).code == 0


def test_a_split_that_does_not_exist_is_named_with_those_that_do(data: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, "eval", "--data", "data", "--split", "tets", "--bundle", "bundle")
    assert_refused(ran, "'tets'", "'train', 'val'")


def test_scenes_are_not_drawn_over_other_things(place: Path, capsys: Capsys) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        ran = run_here(capsys, "data", "synth", "mine", "--train", "1", "--val", "0", "--test", "0", *extra)
        assert_refused(ran, "mine")
    assert Path("mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data", "synth", "out", "--domain", "C"], "unknown domain 'C': choose one of A, B"),
        (["data", "synth", "out", "--train", "0", "--val", "0", "--test", "0"], "at least one scene"),
        (["train", "--data", "data", "--preset", "huge"], "preset is 'huge': choose one of tiny, b, l"),
        (["train", "--data", "data", "--precision", "fp8"], "precision is 'fp8'"),
        (["train", "--data", "data", "--text-padding", "none"], "text_padding is 'none'"),
        (["train", "--data", "data", "--from-scratch", "--learning-rate", "-1"], "learning_rate is -1.0"),
        (["train", "--data", "data", "--from-scratch", "--learning-rate", "nan"], "learning_rate is nan"),
        (["train", "--data", "data", "--from-scratch", "--base", "x"], "--from-scratch and --base contradict"),
        (["train", "--data", "data", "--base", "nowhere.safetensors"], "'nowhere.safetensors' do"),
        (["train", "--data", "data", "--resume"], "no run under 'runs'"),
        (["eval", "--data", "data", "--protocol", "mine"], "unknown protocol 'mine'"),
        (["eval", "--data", "data", "--split", "val", "--run", "nowhere"], "'nowhere' is not a run"),
        (["eval", "--data", "data", "--split", "val"], "no run under 'runs'"),
        (["eval", "--data", "data", "--run", "a", "--bundle", "bundle"], "name different models"),
        (["merge", "nowhere"], "'nowhere' is not a run"),
        (["merge"], "no run under 'runs'"),
        (["export"], "no run under 'runs'"),
        (["export", "nowhere"], "'nowhere' is not a run"),
        (["export", "nowhere", "--out", "data"], "'data' exists and is not a bundle"),
        (["parity", "--data", "data", "--split", "val"], "no run under 'runs'"),
        (["bench", "--backends", "torch"], "no run under 'runs'"),
        (["bench", "--backends", " , "], "--backends"),
        (["export", "--random-weights", "huge"], "unknown preset 'huge'"),
        (["train", "--data", "data", "--sam", "nowhere.pth"], "--sam and --siglip go together"),
        (["train", "--data", "data", "--preset", "b", "--sam", "no.pth", "--siglip", "no"], "'no.pth' does not exist"),
        (["convert", "no.pth", "--out", "run", "--preset", "huge"], "unknown preset 'huge'"),
        (["merge", "nowhere", "--half"], "'nowhere' is not a run"),
        (["convert", "no.pth", "--out", "run"], "the checkpoint 'no.pth' is not a file"),
        (["convert", "data", "--out", "run"], "the checkpoint 'data' is not a file"),
        (["convert", "scene.png", "--out", "run"], "--tokenizer"),
        (["eval", "--data", "data", "--split", "val", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["data", "check", "data", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["data", "convert", "data", "out.jsonl", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["data", "check", "data", "--tokenizer", "nowhere"], "tokenizer 'nowhere' does not exist"),
        (["data", "check", "data", "--tokenizer", "scene.png"], "'scene.png'"),
        (["eval", "--data", "data", "--base", "--worst-cases", "a.jpg"], "end it with .png"),
        (["eval", "--data", "data", "--split", "val", "--base", "--worst-cases", "scene.png/a.png"], "cannot write"),
        (["eval", "--data", "data", "--split", "val", "--base", "--save-predictions", "data"], "holds other things"),
        (["eval", "--data", "data", "--split", "val", "--base", "--save-predictions", "scene.png"], "scene.png"),
        (["eval", "--data", "data", "--split", "val", "--run", "scene.png"], "is no whole safetensors file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_arguments_that_name_nothing(arguments: list[str], told: str, data: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, *arguments), told)


# Checkpoints


def write_torch_bomb(path: Path) -> None:
    import torch

    torch.save({"model": Bomb()}, path)


@pytest.mark.parametrize(
    "write",
    [
        write_torch_bomb,
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    ],
    ids=["torch", "pickle", "empty", "a header of an exabyte"],
)
def test_a_base_that_is_no_safetensors_file_is_refused_unread(
    write: Callable[[Path], Any], data: Path, small_base: Path, capsys: Capsys
) -> None:
    write(Path("base.safetensors"))
    shutil.copy(small_base.with_name("tokenizer.json"), "tokenizer.json")
    ran = run_here(capsys, "train", "--data", "data", "--base", "base.safetensors", "--out", "run")
    assert_refused(ran, "base.safetensors' is no whole safetensors file")
    assert not Path("harm").exists()


def test_a_run_that_is_there_is_not_overwritten(exported: Exported, data: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    before = {path.name: path.read_bytes() for path in Path("runs/001").iterdir() if path.is_file()}
    ran = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", "runs/001")
    assert_refused(ran, "'runs/001' already holds a run", "--resume")
    assert {path.name: path.read_bytes() for path in Path("runs/001").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["best.safetensors", "run.json", "reference_inputs.safetensors", "tokenizer.json"])
def test_a_damaged_run_is_named(name: str, exported: Exported, place: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    cut_in_half(Path("runs/001") / name)
    assert_refused(run_here(capsys, "merge"), name)


def test_a_bundle_of_another_run_is_no_reference(exported: Exported, data: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    ran = run_here(capsys, "parity", "--data", "data", "--split", "val")
    assert ran.code == 2
    assert "the bundle 'bundle' was exported from" in ran.err.splitlines()[-1]
    assert Bundle.open("bundle").manifest.preset == "made"
