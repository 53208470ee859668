"""Training on two processes equals training on one: images, phrases, losses and statistics."""

from pathlib import Path

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.runs.base import BaseWeights, from_file
from tests.support.runs import LOSS_TOLERANCE, STEADY, assert_same_run, launch, losses, refused, write_uneven_boxes
from tests.support.small import train_small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(small_base: Path) -> BaseWeights:
    return from_file(small_base)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_boxes(tmp_path_factory.mktemp("uneven") / "data")


@pytest.fixture(scope="module")
def two_processes(uneven: Path, small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs of ``tests.support.two_processes``."""
    root = tmp_path_factory.mktemp("two_processes")
    ran = launch("tests.support.two_processes", uneven, small_base, root)
    assert ran.returncode == 0, ran.stderr
    return root


def trained(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "last.safetensors", "weight.").tensors


def test_two_processes_have_the_losses_of_one_at_the_same_effective_batch(
    two_processes: Path, uneven: Path, base: BaseWeights, tmp_path: Path
) -> None:
    """The last step of an epoch has two of four images: one process has none and does not count."""
    train_small(uneven, tmp_path / "one", base, **STEADY | {"batch_size": 4})
    found, expected = losses(two_processes / "steady"), losses(tmp_path / "one")
    assert len(found) == 6
    assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)
    left, right = trained(two_processes / "steady"), trained(tmp_path / "one")
    statistics = [name for name in left if "running_" in name]
    assert len(statistics) == 6
    for name in statistics:
        # A step of AdamW may turn rounding of a tiny gradient into a part of the learning rate.
        assert torch.allclose(left[name], right[name], rtol=1e-3, atol=1e-4), name


def test_the_main_process_decides_what_is_best(two_processes: Path) -> None:
    """The other process has a gIoU that no later one exceeds: both still save and continue together."""
    assert (two_processes / "finished.0").read_text() == (two_processes / "finished.1").read_text()
    assert_same_run(two_processes / "disagreeing", two_processes / "steady")


def test_a_run_continues_with_as_many_processes_as_it_had(two_processes: Path, uneven: Path, base: BaseWeights) -> None:
    with refused("2 processes", "--num_processes 2"):
        train_small(uneven, two_processes / "steady", base, resume=True)


def test_two_killed_processes_end_where_they_would_have(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    assert launch("tests.support.small", boxes, small_base, f"{whole}:0", f"{interrupted}:3").returncode != 0
    assert launch("tests.support.small", boxes, small_base, f"{interrupted}:0").returncode == 0
    assert_same_run(interrupted, whole)
    assert len(losses(whole)) == 6
