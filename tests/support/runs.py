"""Helpers for tests of training: interrupting a run, comparing run folders, errors of one line, several processes."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.model.config import LoraSettings
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.trainer import Watcher
from tests.support import ROOT
from tests.support.small import write_boxes

RUN_FILES = {
    ".lock",
    "run.json",
    "tokenizer.json",
    "reference_inputs.safetensors",
    "metrics.jsonl",
    "last.safetensors",
    "best.safetensors",
}
# No dropout, since each process draws its own. Two phrases of an image where it has two.
STEADY: dict[str, Any] = {
    "phrases_per_image": 2,
    "learning_rate": 1e-2,
    "checkpoint_every_steps": 2,
    "lora": LoraSettings(rank=4, alpha=4, dropout=0.0),
}
# The same sums in another order: 1e-7 of a loss. Another mean or other batch statistics change it by 7e-6 at once and
# by 1e-4 and more after three steps.
LOSS_TOLERANCE = 1e-6


class StoppedError(Exception):
    """Interrupts a training."""


def interrupt_at(step: int) -> Watcher:
    """Interrupt after the optimizer step and its log line, before a checkpoint."""

    def on_step(report: Any) -> None:
        if report.step == step:
            raise StoppedError

    return Watcher(on_step=on_step)


def interrupt_at_validation(epoch: int) -> Watcher:
    """Interrupt after the epoch's last step and validation, before best weights and checkpoint."""

    def on_validation(done: int, result: Any) -> None:
        if done == epoch:
            raise StoppedError

    return Watcher(on_validation=on_validation)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def assert_same_run(found: Path, expected: Path) -> None:
    """Assert that two run folders are equal in every byte."""
    left, right = contents(found), contents(expected)
    assert left.keys() == right.keys() == RUN_FILES
    assert [name for name in left if left[name] != right[name]] == []


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(run / "metrics.jsonl") if "loss" in entry]


@contextmanager
def refused(*facts: str, kind: type[RSRefSegError] = BadInputError) -> Iterator[None]:
    """Assert a one-line error of this class that contains all ``facts``."""
    with pytest.raises(kind) as refusal:
        yield
    for fact in facts:
        assert fact in str(refusal.value)
    assert "\n" not in str(refusal.value)


def write_uneven_boxes(root: Path) -> Path:
    """Write ten training images, seven with two phrases and three with one, so that batches have unequal phrases."""
    data = write_boxes(root)
    path = data / "rrsisd" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([ref for number, ref in enumerate(refs) if number not in (1, 6, 15)], protocol=2))
    return data


def launch(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository in two CPU processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "--no-python", sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
