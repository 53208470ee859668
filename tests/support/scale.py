"""Trainings of several processes: a program for ``torchrun``, and data on which a wrong share of a phrase shows."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.small import train_small, write_boxes

# Dropout off: processes draw their own. Two phrases of an image where it has two.
STEADY: dict[str, Any] = {"phrases_per_image": 2, "learning_rate": 1e-2, "checkpoint_every_steps": 2}
# The same sums in another order: 1e-7 of a loss. Another mean or other batch statistics change it by 7e-6 at once and
# by 1e-4 and more after three steps.
LOSS_TOLERANCE = 1e-6
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


class StoppedHereError(Exception):
    """Ends a training on all of its processes at once."""


def steady(**overrides: Any) -> dict[str, Any]:
    from rsrefseg.model.config import LoraSettings

    return STEADY | {"lora": LoraSettings(rank=4, alpha=4, dropout=0.0)} | overrides


def write_uneven_boxes(root: Path) -> Path:
    """Ten training images: seven with two phrases, three with one, so that equal batches hold unequal phrases."""
    data = write_boxes(root)
    path = data / "rrsisd" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([ref for number, ref in enumerate(refs) if number not in (1, 6, 15)], protocol=2))
    return data


def launch(*arguments: str, processes: int = 2, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run this program in several CPU processes: the exit code, and what they said on standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    ran = subprocess.run(
        [*command, "--no-python", sys.executable, "-m", "tests.support.scale", *arguments],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stderr


def train_as_told(data: Path, base: Path, root: Path) -> None:
    """One copy a process; sharded; sharded, stopped at a step's and an epoch's checkpoint. All without dropout."""
    import torch

    from rsrefseg.runs.base import from_file
    from rsrefseg.train.trainer import Trainer

    torch.set_num_threads(1)
    start = from_file(base)
    accumulated = steady(batch_size=1, gradient_accumulation=2, max_grad_norm=0.5)
    train_small(data, root / "copies", start, **steady())
    train_small(data, root / "copies_accumulated", start, **accumulated)
    os.environ.update(SHARDED)
    checkpoint = Trainer._checkpoint

    def checkpoint_and_count(trainer: Trainer) -> None:
        checkpoint(trainer)
        parameters = list(trainer.plain_model.parameters())
        here = sum(parameter.to_local().numel() for parameter in parameters)
        if trainer.accelerator.is_main_process:
            counts = {"here": here, "all": sum(parameter.numel() for parameter in parameters)}
            (root / "parts.json").write_text(json.dumps(counts))

    Trainer._checkpoint = checkpoint_and_count  # type: ignore[method-assign]
    train_small(data, root / "sharded", start, **steady(gradient_checkpointing=True))
    train_small(data, root / "sharded_accumulated", start, **accumulated)

    def checkpoint_and_stop(trainer: Trainer) -> None:
        checkpoint(trainer)
        raise StoppedHereError

    Trainer._checkpoint = checkpoint_and_stop  # type: ignore[method-assign]
    for resume in (False, True):
        with contextlib.suppress(StoppedHereError):
            train_small(data, root / "resumed", start, resume=resume, **steady(gradient_checkpointing=True))
    Trainer._checkpoint = checkpoint  # type: ignore[method-assign]
    train_small(data, root / "resumed", start, resume=True)


if __name__ == "__main__":
    train_as_told(*map(Path, sys.argv[1:4]))
