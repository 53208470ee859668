"""The seed determines a training, also after interruptions; its folder records the settings."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.evaluation.metrics import MetricsResult, Protocol
from rsrefseg.model.config import LoraSettings
from rsrefseg.runs.base import BaseWeights, from_scratch, shipped
from rsrefseg.runs.run import Run
from rsrefseg.train import trainer as trainer_module
from rsrefseg.train.config import Precision, TrainConfig
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.settings import DataSettings
from rsrefseg.train.train import train
from rsrefseg.train.trainer import Watcher
from tests.support.runs import StoppedError, assert_same_run, contents, interrupt_at, interrupt_at_validation, refused
from tests.support.small import small_config, small_training, train_small

# Five batches, two a step.
ACCUMULATED = {"gradient_accumulation": 2, "checkpoint_every_steps": 1, "max_grad_norm": 0.5}
SCRATCH = {"base": from_scratch(), "lora": None, "learning_rate": 1e-3, "workers": 2}


@pytest.mark.parametrize(
    ("options", "interruptions"),
    [
        ({}, [interrupt_at(1)]),  # before the first checkpoint
        ({}, [interrupt_at(5)]),  # at the last step of an epoch
        ({}, [interrupt_at_validation(0)]),  # between validation and its checkpoint
        ({}, [interrupt_at(3), interrupt_at(8), interrupt_at_validation(1)]),
        (ACCUMULATED, [interrupt_at(2), interrupt_at(3)]),
        ({"checkpoint_every_steps": 1}, [interrupt_at_validation(0)]),  # two checkpoints at an epoch's end
        (SCRATCH, [interrupt_at(7)]),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    boxes: Path, base: BaseWeights, tmp_path: Path, options: dict[str, Any], interruptions: list[Watcher]
) -> None:
    """A resumed run keeps the settings of its record; resuming a new folder starts a run."""
    options = {"base": base} | options
    train_small(boxes, tmp_path / "whole", **options)
    for watcher in interruptions:
        with pytest.raises(StoppedError):
            train_small(boxes, tmp_path / "run", resume=True, watcher=watcher, **options)
    train_small(boxes, tmp_path / "run", shipped("tiny"), resume=True, epochs=9, seed=4, learning_rate=1.0, lora=None)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "run", base)
    before = contents(tmp_path / "run")
    result = train_small(boxes, tmp_path / "run", base, resume=True)
    assert result.position.step == 10
    assert contents(tmp_path / "run") == before


def test_the_seed_decides(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(int(torch.randint(1, 9, ())))  # whatever ran before in this process must not matter
        np.random.rand()
        train_small(boxes, tmp_path / name, base, seed=seed)
    assert_same_run(tmp_path / "again", tmp_path / "first")
    assert contents(tmp_path / "first")["best.safetensors"] != contents(tmp_path / "other")["best.safetensors"]


def test_dropout_is_on(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    """Without this, the tests of exact resuming could not detect a wrong random state."""
    for name, dropout in (("with", 0.3), ("without", 0.0)):
        train_small(boxes, tmp_path / name, base, lora=LoraSettings(rank=4, alpha=4, dropout=dropout))
    assert contents(tmp_path / "with")["last.safetensors"] != contents(tmp_path / "without")["last.safetensors"]


def test_best_is_of_the_best_validation_and_last_of_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    scores = [MetricsResult(Protocol.RSREFSEG, 1, giou, 0.0, {}, {}) for giou in (0.2, 0.6, 0.4)]
    with patch.object(trainer_module, "validate", side_effect=scores):
        result = train_small(boxes, tmp_path / "run", base, epochs=3)
    assert result.position.best_giou == 0.6
    assert load_tensors(result.run.best_path).header["step"] == 10
    last = load_tensors(result.run.last_path)
    assert last.header["position"] == {"epoch": 3, "batch": 0, "step": 15, "best_giou": 0.6}
    name = "attn_prompter.down_channel.conv.weight"
    assert not torch.equal(load_tensors(result.run.best_path).tensors[name], last.tensors["weight." + name])


def test_validation_runs_at_its_interval_and_at_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, epochs=3, validate_every_epochs=2).run
    validations = [entry for entry in read_metrics(run.metrics_path) if "validation" in entry]
    assert [entry["epoch"] for entry in validations] == [1, 2]
    assert {"gIoU", "cIoU", "Pr@0.5", "Pr@0.9"} <= validations[0]["validation"].keys()


def test_without_validation_the_best_is_the_last(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    data = DataSettings(path=(boxes,), validation_split=None)
    result = train(data, tmp_path / "run", small_config(), small_training(), base)
    assert load_tensors(result.run.best_path).header["step"] == result.position.step == 10
    assert result.position.best_giou == -1


def test_the_log_is_cut_back_to_the_checkpoint(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(StoppedError):
            train_small(boxes, run.path, base, resume=resume, watcher=interrupt_at(5))
        assert [entry["step"] for entry in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]
        with run.metrics_path.open("a", encoding="utf-8") as stream:
            stream.write('{"step": 3, "lo')  # cut off in the middle of a line


def test_the_folder_records_the_settings_of_the_run(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    result = train_small(boxes, tmp_path / "run", base)
    record, counts = result.run.read_record(), result.parameters
    assert TrainConfig.from_dict(record["train"]) == small_training()
    assert record["base"] == base.to_dict()
    assert record["parameters"] == {"trained": counts.trained, "total": counts.total}
    assert 0 < counts.trained < counts.total
    assert len({path.stat().st_mode for path in result.run.path.glob("*.*")}) == 1
    for path in result.run.path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            assert json.loads(stream.metadata()["rsrefseg"])["schema_version"] == 1


def test_two_trainings_never_share_a_folder(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, epochs=1).run
    with FileLock(run.path / ".lock"), refused("another process", "--out"):
        train_small(boxes, run.path, base, resume=True)
    train_small(boxes, run.path, base, resume=True)


def test_one_process_can_train_in_two_precisions(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, precision in (("bf16", Precision.BF16), ("fp32", Precision.FP32)):
        train_small(boxes, tmp_path / name, base, precision=precision, epochs=1)
    left, right = (load_tensors(tmp_path / name / "best.safetensors").tensors for name in ("bf16", "fp32"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in left.values())
    assert any(not torch.equal(left[name], right[name]) for name in left)
