"""Training on several processes is training on one: same images, same phrases, same losses, same statistics."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.runs.base import BaseWeights, from_file
from rsrefseg.train.config import Precision
from rsrefseg.train.metrics_log import read_metrics
from tests.support.runs import assert_same_run, refused
from tests.support.scale import LOSS_TOLERANCE, SHARDED, launch, steady, write_uneven_boxes
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
    """Runs of two processes: ``copies`` and ``sharded``, also ``_accumulated``, and ``resumed``. Not to be changed."""
    root = tmp_path_factory.mktemp("two_processes")
    code, told = launch(str(uneven), str(small_base), str(root))
    assert code == 0, told
    return root


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(run / "metrics.jsonl") if "loss" in entry]


def trained(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "last.safetensors", "weight.").tensors


def test_two_processes_have_the_losses_of_one_at_the_same_effective_batch(
    two_processes: Path, uneven: Path, base: BaseWeights, tmp_path: Path
) -> None:
    """The last step of an epoch has two of its four images: one process has none of them, and is not to count."""
    train_small(uneven, tmp_path / "one", base, **steady(batch_size=4))
    found, expected = losses(two_processes / "copies"), losses(tmp_path / "one")
    assert len(found) == 6
    assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)
    left, right = trained(two_processes / "copies"), trained(tmp_path / "one")
    statistics = [name for name in left if "running_" in name]
    assert len(statistics) == 6
    for name in statistics:
        # A step of AdamW may turn rounding of a tiny gradient into a part of the learning rate.
        assert torch.allclose(left[name], right[name], rtol=1e-3, atol=1e-4), name


def test_sharded_training_has_the_losses_of_whole_copies(two_processes: Path) -> None:
    """Also over accumulated batches, with gradients clipped by their norm over all parts."""
    for kind in ("", "_accumulated"):
        found, expected = losses(two_processes / f"sharded{kind}"), losses(two_processes / f"copies{kind}")
        assert found == pytest.approx(expected, rel=LOSS_TOLERANCE), kind
    left, right = trained(two_processes / "sharded"), trained(two_processes / "copies")
    assert {name: tensor.shape for name, tensor in left.items()} == {
        name: tensor.shape for name, tensor in right.items()
    }
    parts = json.loads((two_processes / "parts.json").read_text())
    assert 0.49 < parts["here"] / parts["all"] < 0.55  # a tensor of one row cannot be halved


def test_sharded_training_goes_on_where_it_stopped(two_processes: Path) -> None:
    assert_same_run(two_processes / "resumed", two_processes / "sharded")


def test_a_run_goes_on_with_as_many_processes_as_it_had(two_processes: Path, uneven: Path, base: BaseWeights) -> None:
    with refused("copies", "started on 2 processes, these are 1", "--num_processes 2", "--out"):
        train_small(uneven, two_processes / "copies", base, resume=True)


@pytest.mark.parametrize(
    ("environment", "options", "told"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, ("DeepSpeed", "--multi_gpu", "--use_fsdp --fsdp_version 2")),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, ("--fsdp_version 2",)),
        (SHARDED | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, ("--fsdp_offload_params",)),
        (SHARDED, {"precision": Precision.FP16}, ("fp16", "--use_fsdp", "bf16 or fp32")),
    ],
    ids=["DeepSpeed", "FSDP 1", "offloading", "float16"],
)
def test_ways_of_sharding_that_are_not_offered_are_refused(
    uneven: Path,
    base: BaseWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    options: dict[str, Any],
    told: tuple[str, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with refused(*told, kind=RSRefSegError):
        train_small(uneven, tmp_path / "run", base, **options)
    assert not (tmp_path / "run" / "run.json").exists()


def test_training_alone_needs_no_sharding(
    boxes: Path, base: BaseWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_small(boxes, tmp_path / "plain", base)
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    train_small(boxes, tmp_path / "sharded", base)
    assert_same_run(tmp_path / "sharded", tmp_path / "plain")
