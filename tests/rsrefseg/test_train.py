"""A training run is what its seed makes it, however often it is interrupted; its folder says what it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.model.config import LoraSettings
from rsrefseg.runs.base import BaseWeights, from_file, from_scratch
from rsrefseg.runs.run import Run, latest_run
from rsrefseg.train import run as run_module
from rsrefseg.train import trainer as trainer_module
from rsrefseg.train.config import Precision, TrainConfig
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.setup import DataChoice
from rsrefseg.train.trainer import Watcher
from tests.support import ROOT
from tests.support.runs import StoppedError, assert_same_run, contents, interrupt_at, interrupt_at_validation, refused
from tests.support.small import small_config, small_training, train_small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(small_base: Path) -> BaseWeights:
    return from_file(small_base)


@pytest.fixture
def interrupted(boxes: Path, base: BaseWeights, tmp_path: Path) -> Run:
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    return Run(tmp_path / "run")


# --- exact resuming -------------------------------------------------------------------------------------------------


def train_to_the_end(data: Path, out: Path, base: BaseWeights, interruptions: list[Watcher], **overrides: Any) -> None:
    for number, watcher in enumerate(interruptions):
        with pytest.raises(StoppedError):
            train_small(data, out, base, resume=number > 0, watcher=watcher, **overrides)
    train_small(data, out, base, resume=True, **overrides)


@pytest.mark.parametrize(
    "interruptions",
    [
        pytest.param([interrupt_at(1)], id="before the first checkpoint"),
        pytest.param([interrupt_at(3)], id="in the middle of an epoch"),
        pytest.param([interrupt_at(5)], id="at the last step of an epoch"),
        pytest.param([interrupt_at_validation(0)], id="between validation and its checkpoint"),
        pytest.param([interrupt_at(6)], id="in the first step of the second epoch"),
        pytest.param([interrupt_at(3), interrupt_at(8), interrupt_at_validation(1)], id="three times"),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    boxes: Path, base: BaseWeights, tmp_path: Path, interruptions: list[Watcher]
) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_to_the_end(boxes, tmp_path / "interrupted", base, interruptions)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


@pytest.mark.parametrize("interruption", [interrupt_at(2), interrupt_at(3), interrupt_at_validation(0)])
def test_resuming_is_exact_with_gradient_accumulation(
    boxes: Path, base: BaseWeights, tmp_path: Path, interruption: Watcher
) -> None:
    """Five batches, two a step: the last step of an epoch has one."""
    options: dict[str, Any] = {"gradient_accumulation": 2, "checkpoint_every_steps": 1, "max_grad_norm": 0.5}
    whole = train_small(boxes, tmp_path / "whole", base, **options)
    assert whole.position.step == 6
    train_to_the_end(boxes, tmp_path / "interrupted", base, [interruption], **options)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


def test_resuming_is_exact_where_the_epochs_end_has_two_checkpoints(
    boxes: Path, base: BaseWeights, tmp_path: Path
) -> None:
    """The one after the last step says nothing of the validation; the log must not tell it twice."""
    train_small(boxes, tmp_path / "whole", base, checkpoint_every_steps=1)
    train_to_the_end(boxes, tmp_path / "interrupted", base, [interrupt_at_validation(0)], checkpoint_every_steps=1)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


def test_resuming_is_exact_from_scratch_and_on_loading_processes(boxes: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": None, "learning_rate": 1e-3}
    train_small(boxes, tmp_path / "whole", from_scratch(), **options)
    train_to_the_end(boxes, tmp_path / "interrupted", from_scratch(), [interrupt_at(3)], **options)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")
    train_small(boxes, tmp_path / "workers", from_scratch(), workers=2, **options)
    whole, workers = contents(tmp_path / "whole"), contents(tmp_path / "workers")
    assert whole["last.safetensors"] == workers["last.safetensors"]


def test_a_finished_run_stays_as_it_is(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "run", base)
    before = contents(tmp_path / "run")
    result = train_small(boxes, tmp_path / "run", base, resume=True)
    assert result.position.step == 10
    assert contents(tmp_path / "run") == before


def test_a_resumed_run_keeps_the_settings_of_its_record(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    train_small(boxes, tmp_path / "run", from_scratch(), resume=True, epochs=9, seed=4, learning_rate=1.0, lora=None)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_resuming_nothing_starts_a_run(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_small(boxes, tmp_path / "run", base, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_seed_decides(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(int(torch.randint(1, 9, ())))  # whatever ran before in this process must not matter
        np.random.rand()
        train_small(boxes, tmp_path / name, base, seed=seed)
    assert_same_run(tmp_path / "again", tmp_path / "first")
    assert contents(tmp_path / "first")["best.safetensors"] != contents(tmp_path / "other")["best.safetensors"]


def test_dropout_is_on_and_differs_from_batch_to_batch(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    """Otherwise the tests of exact resuming would not see a wrong random state."""
    for name, dropout in (("with", 0.3), ("without", 0.0)):
        train_small(boxes, tmp_path / name, base, lora=LoraSettings(rank=4, alpha=4, dropout=dropout))
    assert contents(tmp_path / "with")["last.safetensors"] != contents(tmp_path / "without")["last.safetensors"]


# --- what a run folder holds ----------------------------------------------------------------------------------------


def test_best_is_of_the_best_validation_and_last_of_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    scores = iter([0.2, 0.6, 0.4])

    def fake_validation(*_: Any, **__: Any) -> Any:
        from rsrefseg.evaluation.metrics import MetricsResult, Protocol

        return MetricsResult(Protocol.RSREFSEG, 1, next(scores), 0.0, {}, {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "evaluate", fake_validation)
        result = train_small(boxes, tmp_path / "run", base, epochs=3)
    assert result.position.best_giou == 0.6
    assert load_tensors(result.run.best_path).header["step"] == 10
    last = load_tensors(result.run.last_path)
    assert last.header["position"] == {"epoch": 3, "batch": 0, "step": 15, "best_giou": 0.6}
    name = "attn_prompter.down_channel.conv.weight"
    assert not torch.equal(load_tensors(result.run.best_path).tensors[name], last.tensors["weight." + name])


def test_validation_comes_when_asked_and_at_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, epochs=3, validate_every_epochs=2).run
    validations = [entry for entry in read_metrics(run.metrics_path) if "validation" in entry]
    assert [entry["epoch"] for entry in validations] == [1, 2]
    assert {"gIoU", "cIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"} <= validations[0]["validation"].keys()


def test_without_validation_the_best_is_the_last(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    from rsrefseg.train.entry import train

    choice = DataChoice(boxes, validation_split=None)
    result = train(choice, tmp_path / "run", small_config(), small_training(), base)
    assert load_tensors(result.run.best_path).header["step"] == result.position.step == 10
    assert result.position.best_giou == -1


def test_the_log_is_cut_back_to_the_checkpoint(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(StoppedError):
        train_small(boxes, run.path, base, watcher=interrupt_at(5))
    assert [entry["step"] for entry in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]
    with run.metrics_path.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "lo')  # cut off in the middle of a line
    with pytest.raises(StoppedError):
        train_small(boxes, run.path, base, resume=True, watcher=interrupt_at(5))
    assert [entry["step"] for entry in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]


def test_the_record_tells_how_the_run_was_made(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    result = train_small(boxes, tmp_path / "run", base)
    record = result.run.read_record()
    assert TrainConfig.from_dict(record["train"]) == small_training()
    assert record["base"] == base.to_dict()
    assert record["parameters"] == {"trained": result.trained_parameters, "total": result.total_parameters}
    assert 0 < result.trained_parameters < result.total_parameters


def test_files_can_be_read_by_others(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base).run
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir()}
    assert set(modes.values()) == {modes["run.json"]}


def test_the_latest_run_is_the_newest_record(tmp_path: Path) -> None:
    with refused("runs", "rsrefseg train"):
        latest_run(tmp_path / "runs")


# --- several processes and precisions ------------------------------------------------------------------------------


def test_two_trainings_never_share_a_folder(
    interrupted: Run, boxes: Path, base: BaseWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_HOLD_SECONDS", 0.0)
    with interrupted.held(), refused("another process", "--out"):
        train_small(boxes, interrupted.path, base, resume=True)
    train_small(boxes, interrupted.path, base, resume=True)


def test_two_processes_train_one_model(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    """Each takes every other batch, one writes; killed and started again they end where they would have."""

    def launch(*runs: str) -> int:
        processes = ["--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
        job = ["-m", "tests.support.small", str(boxes), str(small_base), *runs]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *processes, *job]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert launch(f"{tmp_path}/whole:0", f"{tmp_path}/interrupted:3") != 0
    assert launch(f"{tmp_path}/interrupted:0") == 0
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")
    entries = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_one_process_can_train_in_two_precisions(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, precision in (("bf16", Precision.BF16), ("fp32", Precision.FP32)):
        train_small(boxes, tmp_path / name, base, precision=precision, epochs=1)
    left, right = (load_tensors(tmp_path / name / "best.safetensors").tensors for name in ("bf16", "fp32"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in left.values())
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_checkpoints_hold_tensors_and_json_only(interrupted: Run) -> None:
    for path in interrupted.path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            assert json.loads(stream.metadata()["rsrefseg"])["schema_version"] == 1
