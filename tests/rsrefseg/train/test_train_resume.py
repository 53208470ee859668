"""A run continues with what it recorded: other weights, tokenizers and splits are refused, not ignored."""

import shutil
from pathlib import Path

import pytest

from rsrefseg.model.config import Preset
from rsrefseg.runs.base import BaseWeights, shipped
from rsrefseg.runs.imported_run import make_base_run
from rsrefseg.runs.run import Run
from rsrefseg.train.settings import DataSettings
from rsrefseg.train.train import train
from tests.support.commands import assert_refused, run_here
from tests.support.runs import StoppedError, interrupt_at, refused
from tests.support.small import small_config, small_training, train_small

Capture = pytest.CaptureFixture[str]


def resume(capsys: Capture, data: Path, run: Path, *options: str | Path) -> None:
    """Try to continue a run with options that it was not started with."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert_refused(run_here(capsys, "train", "--data", data, "--out", run, "--resume", *options), str(run))
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("options", [("--from-scratch",), ("--random-weights",), ("--base", "another.safetensors")])
def test_other_weights_are_refused(
    boxes: Path, base: BaseWeights, tmp_path: Path, capsys: Capture, options: tuple[str, ...]
) -> None:
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    resume(capsys, boxes, tmp_path / "run", *options)


def test_another_tokenizer_is_refused(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run, settings, model = tmp_path / "run", DataSettings(path=(boxes,)), small_config()
    with pytest.raises(StoppedError):
        train_small(boxes, run, base, watcher=interrupt_at(3))
    own = Path(shutil.copy(run / "tokenizer.json", tmp_path / "own.json"))
    other = tmp_path / "other.json"
    other.write_text(own.read_text().replace("red", "read"))
    with refused("other.json"):
        train(settings, run, model, small_training(), base, tokenizer=other, resume=True)
    train(settings, run, model, small_training(), base, tokenizer=own, resume=True)


def test_a_run_that_was_never_trained_is_not_continued(boxes: Path, tmp_path: Path, capsys: Capture) -> None:
    run = make_base_run(tmp_path / "run").path
    resume(capsys, boxes, run)
    with refused("never trained"):
        train_small(boxes, run, shipped(Preset.TINY), resume=True)


def test_splits_of_other_names_are_recorded(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run, model = tmp_path / "run", small_config()
    settings = DataSettings(path=(boxes,), train_split="val", validation_split="train")
    with pytest.raises(StoppedError):
        train(settings, run, model, small_training(epochs=4), base, watcher=interrupt_at(3))
    train(DataSettings(path=(boxes,)), run, model, small_training(epochs=4), base, resume=True)
    assert Run(run).read_record()["data"]["validation_split"] == "train"


def test_a_base_that_is_a_link_keeps_the_tokenizer_beside_the_link(
    boxes: Path, small_base: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The cache of the hub links each file to one without a name."""
    blob = tmp_path / "blobs/0123abcd"
    blob.parent.mkdir()
    shutil.copy(small_base, blob)
    (tmp_path / "snapshot").mkdir()
    (link := tmp_path / "snapshot/merged.safetensors").symlink_to(blob)
    shutil.copy(small_base.with_name("tokenizer.json"), link.parent)
    command = ("train", "--data", boxes, "--base", link, "--out", tmp_path / "run", "--epochs", "1")
    assert run_here(capsys, *command).code == 0
    assert (tmp_path / "run/tokenizer.json").read_bytes() == (link.parent / "tokenizer.json").read_bytes()
