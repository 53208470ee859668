"""Training on several data sets: their splits are joined, shares are drawn exactly, shared images are found."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from rsrefseg.runs.base import BaseWeights
from rsrefseg.train.batches import EpochBatches
from rsrefseg.train.data import read_samples
from rsrefseg.train.settings import DataSettings, resolve_settings
from tests.support.commands import assert_refused, run_here
from tests.support.made_data import change_refs, image_path
from tests.support.runs import StoppedError, assert_same_run, interrupt_at, refused
from tests.support.small import train_small, write_boxes

SHARE = (1.0, 0.5)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return two data sets: images 1 to 6 and 1 to 4 are for training, the others for validation."""
    return write_boxes(tmp_path / "one", train=6, seed=1), write_boxes(tmp_path / "two", train=4, seed=2)


def drawn(shares: tuple[tuple[int, float], ...], epoch: int) -> list[int]:
    batches = EpochBatches(sum(size for size, _ in shares), batch_size=4, seed=3, shares=shares)
    batches.epoch = epoch
    assert len(list(batches)) == len(batches) == batches.batches
    return [index for index, of in chain(*batches) if of == epoch]


def test_an_epoch_draws_the_share_of_each_data_set_and_in_turn_all_of_it() -> None:
    shares = ((5, 1.0), (12, 0.25), (3, 0.01))
    for epoch in (0, 4, 8):
        found = Counter(chain(*(drawn(shares, epoch + turn) for turn in range(4))))
        assert {found[index] for index in range(5)} == {4}, "every image in every epoch"
        assert {found[index] for index in range(5, 17)} == {1}, "every image once in four epochs"
        assert sum(found[index] for index in range(17, 20)) == 4, "at least one image an epoch"
    assert drawn(shares, 0) == drawn(shares, 0) != drawn(shares, 4)


def test_whole_shares_are_drawn_like_one_data_set() -> None:
    assert drawn(((5, 1.0), (7, 1.0)), 2) == drawn(((12, 1.0),), 2)


def test_a_mixed_run_resumes_exactly(pair: tuple[Path, Path], base: BaseWeights, tmp_path: Path) -> None:
    whole = train_small(pair, tmp_path / "whole", base, share=SHARE)
    assert whole.position.step == 2 * (6 + 2) // 2
    with pytest.raises(StoppedError):
        train_small(pair, tmp_path / "run", base, share=SHARE, watcher=interrupt_at(5))
    with refused("annotations differ"):
        train_small(pair[::-1], tmp_path / "run", base, resume=True)
    with refused("2 data sets, not 1"):
        train_small(pair[0], tmp_path / "run", base, resume=True)
    train_small(pair, tmp_path / "run", base, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_splits_are_joined_and_one_data_set_may_have_no_validation(pair: tuple[Path, Path]) -> None:
    (first, second), validation = read_samples(DataSettings(path=pair))
    assert (len(first), len(second), len(validation)) == (12, 8, 8)
    change_refs(pair[1], lambda refs: [ref.update(split="train") for ref in refs])
    (_, second), validation = read_samples(DataSettings(path=pair))
    assert (len(second), len(validation)) == (12, 4)
    change_refs(pair[0], lambda refs: [ref.update(split="train") for ref in refs])
    with refused("no samples in the split 'val'"):
        read_samples(DataSettings(path=pair))


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_training_images_held_out_elsewhere_are_named_or_left_out(pair: tuple[Path, Path], held_out: str) -> None:
    one, two = pair
    change_refs(one, lambda refs: [ref.update(split=held_out) for ref in refs[-2:]])
    Image.open(image_path(one, 8)).save(image_path(two, 2), format="PNG")  # the same pixels, other bytes
    with refused(
        "1 training image", f"'{image_path(two, 2)}' = '00008.jpg'", f"'{held_out}'", str(one), "--drop-shared"
    ):
        read_samples(DataSettings(path=pair))
    notes: list[str] = []
    (first, second), validation = read_samples(DataSettings(path=pair, drop_shared=True), notes.append)
    assert (len(first), len(second)) == (12, 6)
    assert image_path(two, 2) not in {sample.image_path for sample in second}
    assert len(validation) == (8 if held_out == "val" else 6)
    assert "1 training image" in notes[0]


def test_a_held_out_image_stored_rotated_is_found(pair: tuple[Path, Path]) -> None:
    one, two = pair
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    held_out = Image.open(image_path(one, 8)).transpose(Image.Transpose.ROTATE_90)
    held_out.save(image_path(two, 2), format="PNG", exif=exif)
    with refused("1 training image", "'00008.jpg'"):
        read_samples(DataSettings(path=pair))


def test_images_shared_within_a_split_may_stay(pair: tuple[Path, Path]) -> None:
    Image.open(image_path(pair[0], 1)).save(image_path(pair[1], 2), format="PNG")
    (first, second), _ = read_samples(DataSettings(path=pair))
    assert (len(first), len(second)) == (12, 8)


def test_a_data_set_of_nothing_but_held_out_images_is_refused(pair: tuple[Path, Path]) -> None:
    for number in range(1, 5):
        Image.open(image_path(pair[0], 7)).save(image_path(pair[1], number), format="PNG")
    with refused(str(pair[1]), "leave it out"):
        read_samples(DataSettings(path=pair, drop_shared=True))


def test_options_and_files_name_several_data_sets(
    pair: tuple[Path, Path], small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mix.toml"
    file.write_text(f"[data]\npath = ['{pair[0]}', '{pair[1]}']\nshare = [1, 0.5]\n[training]\nepochs = 1\n")
    command = ("train", "--base", small_base, "--out", tmp_path / "run", "--config", file)
    assert run_here(capsys, *command).code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (record["path"], record["share"], record["samples"]) == ([str(path) for path in pair], [1, 0.5], 20)
    again = (*command, "--resume", "--data", pair[0], "--data", pair[1])
    assert run_here(capsys, *again, "--share", "1", "--share", "0.5").code == 0
    assert_refused(run_here(capsys, *again, "--share", "1", "--share", "1"), "share [1.0, 0.5], not [1.0, 1.0]")
    assert_refused(run_here(capsys, *again, "--drop-shared"), "drop_shared False, not True")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"share": [0.5]}, ("1 --share", "2 --data")),
        ({"share": [1, 0]}, ("share", "> 0")),
        ({"share": [1, 1.5]}, ("share", "<= 1")),
        ({"images": "elsewhere"}, ("--images",)),
        ({"path": ["one", "./one"]}, ("twice",)),
        ({"path": [3]}, ("path",)),
    ],
)
def test_settings_of_several_data_sets_with_a_fault_are_refused(options: dict[str, object], facts: tuple[str]) -> None:
    with refused(*facts):
        resolve_settings(None, {"path": ["one", "two"]} | options)
