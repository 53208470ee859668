"""Helpers for tests of training: stopping a run somewhere, comparing run folders, errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.train.trainer import Watcher

RUN_FILES = {
    ".lock",
    "run.json",
    "tokenizer.json",
    "reference_inputs.safetensors",
    "metrics.jsonl",
    "last.safetensors",
    "best.safetensors",
}


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def interrupt_at(step: int) -> Watcher:
    """After the optimizer step and its line in the log, before a checkpoint."""

    def on_step(report: Any) -> None:
        if report.step == step:
            raise StoppedError

    return Watcher(on_step=on_step)


def interrupt_at_validation(epoch: int) -> Watcher:
    """After the epoch's last step and validation, before its best weights and checkpoint."""

    def on_validation(done: int, result: Any) -> None:
        if done == epoch:
            raise StoppedError

    return Watcher(on_validation=on_validation)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, moments, place in training, log and record: every byte of the folder."""
    left, right = contents(found), contents(expected)
    assert left.keys() == right.keys() == RUN_FILES
    assert [name for name in left if left[name] != right[name]] == []


@contextmanager
def refused(*told: str, kind: type[RSRefSegError] = BadInputError) -> Iterator[None]:
    with pytest.raises(kind) as refusal:
        yield
    for part in told:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
