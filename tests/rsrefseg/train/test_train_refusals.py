"""Training raises one-line errors for unusable input, before the first step if possible."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from rsrefseg.engines.errors import MissingPartError, RSRefSegError
from rsrefseg.model.config import LoraSettings, model_config
from rsrefseg.runs.base import BaseWeights, from_file
from rsrefseg.runs.run import Run
from rsrefseg.runs.tokenizer import open_tokenizer
from rsrefseg.train import trainer
from rsrefseg.train.config import Precision
from rsrefseg.train.data import read_samples
from rsrefseg.train.settings import DataSettings
from rsrefseg.train.trainer import Watcher
from tests.support.commands import assert_refused, run_here
from tests.support.made_data import change_instances, change_refs, image_path, respell
from tests.support.runs import StoppedError, assert_same_run, contents, interrupt_at, refused
from tests.support.small import small_config, train_small, write_boxes

Spoil = Callable[[Path], object]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data set that the test may change."""
    return write_boxes(tmp_path / "data")


@pytest.fixture
def interrupted(boxes: Path, base: BaseWeights, tmp_path: Path) -> Run:
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    return Run(tmp_path / "run")


def test_an_existing_run_is_not_overwritten(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    before = contents(interrupted.path)
    with refused(str(interrupted.path), "--resume"):
        train_small(boxes, interrupted.path, base)
    assert contents(interrupted.path) == before


def test_weights_without_a_record_are_not_taken_for_this_runs(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    interrupted.record_path.unlink()
    for resume in (True, False):
        with refused("last.safetensors", "run.json", "--out"):
            train_small(boxes, interrupted.path, base, resume=resume)


def other_mask(content: dict[str, Any]) -> None:
    first, second = content["annotations"][:2]
    first["segmentation"] = second["segmentation"]


CHANGED: dict[str, Spoil] = {
    "phrase": respell(0, "the other box"),
    "mask": lambda data: change_instances(data, other_mask),
    "one sample less": lambda data: change_refs(data, lambda refs: refs.pop(3)),
    "border of splits": lambda data: change_refs(data, lambda refs: [ref.update(split="val") for ref in refs[18:20]]),
}


@pytest.mark.parametrize("change", CHANGED)
def test_data_that_changed_under_a_run_is_refused(interrupted: Run, data: Path, base: BaseWeights, change: str) -> None:
    CHANGED[change](data)
    with refused(str(data), "annotations differ"):
        train_small(data, interrupted.path, base, resume=True)


def test_the_same_data_elsewhere_is_accepted(interrupted: Run, boxes: Path, data: Path, base: BaseWeights) -> None:
    whole = train_small(boxes, data.with_name("whole"), base).run.path
    train_small(data, interrupted.path, base, resume=True)
    assert_same_run(interrupted.path, whole)


def test_a_damaged_file_is_refused_by_name(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    for name in ("last.safetensors", "tokenizer.json", "run.json"):
        whole = (interrupted.path / name).read_bytes()
        for damaged in (whole[:-100], b"not a tensor"):
            (interrupted.path / name).write_bytes(damaged)
            with refused(name):
                train_small(boxes, interrupted.path, base, resume=True)
        (interrupted.path / name).write_bytes(whole)


def test_a_checkpoint_of_another_run_is_refused(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    other = interrupted.path.with_name("other")
    run = train_small(boxes, other, base, lora=LoraSettings(rank=2, alpha=2), epochs=1).run
    run.last_path.rename(interrupted.last_path)
    with refused("last.safetensors", "lora_A", "shape"):
        train_small(boxes, interrupted.path, base, resume=True)
    interrupted.reference_inputs_path.rename(interrupted.last_path)
    with refused("last.safetensors", "training state"):
        train_small(boxes, interrupted.path, base, resume=True)
    record = interrupted.read_record()
    del record["train"]
    interrupted.write_record(record)
    with refused("run.json", "train"):
        train_small(boxes, interrupted.path, base, resume=True)


def shrink(data: Path) -> None:
    Image.open(image_path(data, 2)).resize((28, 24)).save(image_path(data, 2))


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (shrink, ("00002.jpg", "48x56", "24x28", "--resize-masks")),
        (lambda data: image_path(data, 2).write_bytes(b"not an image"), ("00002.jpg",)),
        (lambda data: image_path(data, 2).unlink(), ("00002.jpg", "missing")),
        (respell(0, "zzz 123 qqq"), ("sample", "no known word")),
    ],
    ids=["size", "no image", "missing image", "phrase"],
)
def test_broken_data_is_refused_before_the_first_step(
    data: Path, base: BaseWeights, tmp_path: Path, spoil: Spoil, facts: tuple[str, ...]
) -> None:
    spoil(data)
    with refused(*facts):
        train_small(data, tmp_path / "run", base)
    assert not Run(tmp_path / "run").record_path.exists()


def test_resized_masks_need_whole_images_too(data: Path, base: BaseWeights, tmp_path: Path) -> None:
    image_path(data, 2).write_bytes(b"")
    with refused("00002.jpg"):
        train_small(data, tmp_path / "run", base, resize_masks=True)
    assert not Run(tmp_path / "run").record_path.exists()


def test_a_run_records_that_masks_are_resized(data: Path, base: BaseWeights, tmp_path: Path) -> None:
    shrink(data)
    with pytest.raises(StoppedError):
        train_small(data, tmp_path / "run", base, resize_masks=True, watcher=interrupt_at(3))
    train_small(data, tmp_path / "run", base, resume=True)


def test_a_rotated_image_is_compared_after_its_exif_rotation(data: Path) -> None:
    path = image_path(data, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert Image.open(path).size == (48, 56)
    (train,), _ = read_samples(DataSettings(path=(data,)))
    assert train[0].mask_size == (48, 56)


def test_images_may_be_in_another_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = (data / IMAGE_FOLDER).rename(data.with_name("photos"))
    (train,), _ = read_samples(DataSettings(path=(data,), images=photos))
    assert train[0].image_path.parent == photos
    command = ("train", "--data", data, "--images", data / "nowhere", "--out", data / "run", "--from-scratch")
    assert_refused(run_here(capsys, *command), "nowhere")


def test_an_image_that_breaks_off_is_one_line(data: Path, base: BaseWeights, tmp_path: Path) -> None:
    image = image_path(data, 7)
    image.write_bytes(image.read_bytes()[:700])  # the header is whole
    with refused(str(image), "cut short"):
        train_small(data, tmp_path / "run", base)


def test_phrases_not_read_in_full_are_reported(data: Path, base: BaseWeights, tmp_path: Path) -> None:
    respell(0, "the purple box " + "red " * 20)(data)
    notes: list[str] = []
    watcher = Watcher(on_step=interrupt_at(1).on_step, on_note=notes.append)
    with pytest.raises(StoppedError):
        train_small(data, tmp_path / "run", base, watcher=watcher)
    (note,) = notes
    assert "purple" in note


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    with refused("finite", "--learning-rate", kind=RSRefSegError):
        train_small(boxes, tmp_path / "run", base, learning_rate=1e30)


@pytest.mark.parametrize("options", [{"text_padding": "longest"}, {"dense_prompt": False}])
def test_a_base_serves_other_options(boxes: Path, base: BaseWeights, tmp_path: Path, options: dict[str, Any]) -> None:
    asked = small_config(**options)
    model = base.build(asked, seed=0)
    assert model.config == asked
    start = load_tensors(Path(base.path or "")).tensors
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    train_small(boxes, tmp_path / "run", base, model=asked, epochs=1)


def test_a_base_needs_its_tokenizer_and_sizes(boxes: Path, tmp_path: Path, small_base: Path) -> None:
    path = Path(shutil.copy(small_base, tmp_path / "alone.safetensors"))
    with refused("alone.safetensors", "--tokenizer"):
        train_small(boxes, tmp_path / "run", from_file(path))
    with refused("small", "tiny", "--base"):
        from_file(small_base).build(model_config("tiny"), seed=0)


def test_a_tokenizer_with_too_many_words_is_refused(interrupted: Run) -> None:
    config = small_config()
    siglip = replace(config.siglip, vocab_size=3)
    with refused("tokenizer.json", "3"):
        open_tokenizer(interrupted, replace(config, siglip=siglip))


def test_a_checkpoint_that_cannot_be_written_changes_nothing(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    before = interrupted.last_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with refused("last.safetensors", "could not be written", "File too large"):
            train_small(boxes, interrupted.path, base, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert interrupted.last_path.read_bytes() == before
    train_small(boxes, interrupted.path, base, resume=True)


def test_half_precision_needs_a_device_that_has_it(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine trains in fp16")
    with refused("fp16", "CUDA"):
        train_small(boxes, tmp_path / "run", base, precision=Precision.FP16)


def test_auto_never_takes_a_precision_that_the_device_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of a GPU before Ampere."""
    monkeypatch.setattr(trainer, "this_process", lambda: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert trainer._mixed_precision(Precision.AUTO) == "fp16"


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_sharded_launch_is_refused(
    boxes: Path, base: BaseWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with refused("--multi_gpu", kind=MissingPartError):
        train_small(boxes, tmp_path / "run", base)
    assert not (tmp_path / "run").exists()
