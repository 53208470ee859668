"""What training cannot do well it refuses, by name, in one line, before the first step where that is possible."""

import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from rsrefseg.checkpoints.model_file import load_tensors, save_model
from rsrefseg.data.rrsisd import IMAGE_FOLDER, INSTANCES_FILE, REFS_FILE
from rsrefseg.engines.errors import MissingPartError, RSRefSegError
from rsrefseg.model.config import LoraSettings, model_config
from rsrefseg.model.model import build_model
from rsrefseg.runs.base import BaseWeights, from_file, shipped
from rsrefseg.runs.run import Run
from rsrefseg.runs.tokenizer import open_tokenizer
from rsrefseg.train.config import Precision
from rsrefseg.train.data import read_samples
from rsrefseg.train.settings import DataSettings
from rsrefseg.train.trainer import Watcher
from tests.support.commands import assert_refused, run_here
from tests.support.runs import StoppedError, assert_same_run, contents, interrupt_at, refused
from tests.support.small import small_config, train_small, write_boxes


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


def test_an_output_that_cannot_be_a_folder_is_refused(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("file"):
        train_small(boxes, tmp_path / "file" / "run", base)


def test_weights_without_a_record_are_not_taken_for_this_runs(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    interrupted.record_path.unlink()
    for resume in (True, False):
        with refused("last.safetensors", "run.json", "--out"):
            train_small(boxes, interrupted.path, base, resume=resume)


def edit_annotations(root: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None]) -> None:
    """Apply ``change`` to the refs and instances of an RRSIS-D folder."""
    folder = root / "rrsisd"
    refs = pickle.loads((folder / REFS_FILE).read_bytes())
    instances = json.loads((folder / INSTANCES_FILE).read_text())
    change(refs, instances)
    (folder / REFS_FILE).write_bytes(pickle.dumps(refs, protocol=2))
    (folder / INSTANCES_FILE).write_text(json.dumps(instances))


def other_phrase(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    refs[0]["sentences"][0]["sent"] = "the other box"


def other_mask(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    first, second = instances["annotations"][:2]
    first["segmentation"], second["segmentation"] = second["segmentation"], first["segmentation"]


def one_sample_less(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    del refs[3]


def another_border_between_splits(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    for ref in [ref for ref in refs if ref["split"] == "train"][-2:]:
        ref["split"] = "val"


def test_data_that_changed_under_a_run_is_refused(interrupted: Run, base: BaseWeights, tmp_path: Path) -> None:
    for change in (other_phrase, other_mask, one_sample_less, another_border_between_splits):
        data = write_boxes(tmp_path / change.__name__)
        edit_annotations(data, change)
        with refused(change.__name__, "annotations differ"):
            train_small(data, interrupted.path, base, resume=True)


def test_the_same_data_elsewhere_is_accepted(interrupted: Run, boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_small(write_boxes(tmp_path / "moved"), interrupted.path, base, resume=True)
    assert_same_run(interrupted.path, tmp_path / "whole")


def test_a_damaged_file_is_refused_by_name(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    for name in ("last.safetensors", "tokenizer.json", "run.json"):
        whole = (interrupted.path / name).read_bytes()
        for damaged in (whole[:-100], b"not a tensor"):
            (interrupted.path / name).write_bytes(damaged)
            with refused(name):
                train_small(boxes, interrupted.path, base, resume=True)
        (interrupted.path / name).write_bytes(whole)


def test_a_checkpoint_that_is_not_this_runs_is_refused(
    interrupted: Run, boxes: Path, base: BaseWeights, tmp_path: Path
) -> None:
    other = train_small(boxes, tmp_path / "other", base, lora=LoraSettings(rank=2, alpha=2), epochs=1).run
    other.last_path.rename(interrupted.last_path)
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


def test_masks_of_other_sizes_are_refused_or_resized_on_request(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00003.jpg"
    Image.open(image).resize((28, 24)).save(image)
    with refused("00003.jpg", "48x56", "24x28", "--resize-masks"):
        train_small(data, tmp_path / "run", base)
    with pytest.raises(StoppedError):
        train_small(data, tmp_path / "run", base, resize_masks=True, watcher=interrupt_at(3))
    # The run records the choice.
    train_small(data, tmp_path / "run", base, resume=True)


def test_a_rotated_image_is_compared_as_its_exif_tag_says(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    path = data / IMAGE_FOLDER / "00001.jpg"
    upright = Image.open(path)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    lying.save(path, exif=exif)
    assert Image.open(path).size == (48, 56)
    train, _ = read_samples(DataSettings(path=data))
    assert train[0].mask_size == (48, 56)


def test_images_that_lie_elsewhere_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_boxes(tmp_path / "data")
    pictures = tmp_path / "pictures"
    (data / IMAGE_FOLDER).rename(pictures)
    with refused("--images"):
        read_samples(DataSettings(path=data))
    train, _ = read_samples(DataSettings(path=data, images=pictures))
    assert train[0].image_path.parent == pictures
    command = ("train", "--data", data, "--images", tmp_path / "nowhere", "--out", tmp_path / "run", "--from-scratch")
    assert_refused(run_here(capsys, *command), "nowhere")


def test_broken_data_is_refused_before_the_first_step(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00002.jpg"
    whole = image.read_bytes()
    image.write_bytes(b"no picture")
    with refused("00002.jpg"):
        train_small(data, tmp_path / "run", base)
    image.unlink()
    with refused("00002.jpg", "missing"):
        train_small(data, tmp_path / "run", base)
    image.write_bytes(whole)
    edit_annotations(data, lambda refs, _: refs[0]["sentences"][0].update(sent="zzz 123 qqq"))
    with refused("sample", "no known word"):
        train_small(data, tmp_path / "run", base)
    assert not Run(tmp_path / "run").record_path.exists()


def test_an_image_that_breaks_off_is_one_line(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00007.jpg"
    image.write_bytes(image.read_bytes()[:700])  # the header is whole
    with refused(str(image), "cut short"):
        train_small(data, tmp_path / "run", base)


def test_phrases_not_read_in_full_are_told(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    edit_annotations(data, lambda refs, _: refs[0]["sentences"][0].update(sent="the purple box " + "red " * 20))
    notes: list[str] = []
    with pytest.raises(StoppedError):
        train_small(
            data, tmp_path / "run", base, watcher=Watcher(on_step=interrupt_at(1).on_step, on_note=notes.append)
        )
    assert len(notes) == 1
    assert "purple" in notes[0]


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    with refused("finite", "--learning-rate", kind=RSRefSegError):
        train_small(boxes, tmp_path / "run", base, learning_rate=1e30)


@pytest.mark.parametrize("options", [{"text_padding": "longest"}, {"dense_prompt": False}])
def test_a_base_serves_another_padding_and_other_prompts(
    boxes: Path, base: BaseWeights, tmp_path: Path, options: dict[str, Any]
) -> None:
    asked = small_config(**options)
    model = base.build(asked, seed=0)
    assert model.config == asked
    start = load_tensors(Path(base.path or "")).tensors
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    train_small(boxes, tmp_path / "run", base, model=asked, epochs=1)


def test_a_base_that_changed_since_is_refused(boxes: Path, tmp_path: Path, small_base: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(small_base.read_bytes())
    path.with_name("tokenizer.json").write_bytes(small_base.with_name("tokenizer.json").read_bytes())
    own = from_file(path)
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", own, watcher=interrupt_at(1))
    save_model(path, build_model(small_config(), seed=9))
    with refused("base.safetensors", "SHA-256"):
        train_small(boxes, tmp_path / "run", own, resume=True)
    path.unlink()
    with refused("base.safetensors"):
        train_small(boxes, tmp_path / "run", own, resume=True)


def test_a_base_needs_its_tokenizer(boxes: Path, tmp_path: Path, small_base: Path) -> None:
    path = tmp_path / "alone.safetensors"
    path.write_bytes(small_base.read_bytes())
    with refused("alone.safetensors", "--tokenizer"):
        train_small(boxes, tmp_path / "run", from_file(path))
    with refused("gone.safetensors"):
        from_file(tmp_path / "gone.safetensors")
    with refused("small", "tiny", "--base"):
        from_file(small_base).build(model_config("tiny"), seed=0)
    with refused("preset 'b'", "--base", kind=MissingPartError):
        shipped("b")


def test_a_tokenizer_with_too_many_words_is_refused(interrupted: Run) -> None:
    config = small_config()
    siglip = replace(config.siglip, vocab_size=3)
    with refused("tokenizer.json", "3"):
        open_tokenizer(interrupted, replace(config, siglip=siglip))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    interrupted: Run, boxes: Path, base: BaseWeights
) -> None:
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


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_sharded_launch_is_refused(
    boxes: Path, base: BaseWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with refused("--multi_gpu", kind=MissingPartError):
        train_small(boxes, tmp_path / "run", base)
    assert not (tmp_path / "run").exists()
