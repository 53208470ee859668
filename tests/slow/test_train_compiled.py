"""``train --compile`` with the real compiler."""

from pathlib import Path

import pytest

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.runs.base import from_file
from tests.support.runs import STEADY, losses
from tests.support.small import train_small


@pytest.mark.usefixtures("one_thread")
def test_a_compiled_run_has_the_losses_and_tensors_of_another(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    """Ten steps; fused operators round differently, by 1.4e-7 of a loss (measured with torch 2.15)."""
    for name, on in (("plain", False), ("compiled", True)):
        train_small(boxes, tmp_path / name, from_file(small_base), compile=on, gradient_checkpointing=on, **STEADY)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    for file in ("last.safetensors", "best.safetensors"):
        plain, compiled = (load_tensors(tmp_path / name / file).tensors for name in ("plain", "compiled"))
        assert {name: tensor.shape for name, tensor in compiled.items()} == {
            name: tensor.shape for name, tensor in plain.items()
        }
