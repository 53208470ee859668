"""``train --compile`` changes no result. ``tests/slow/test_train_compiled.py`` uses the real compiler."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor_config

from rsrefseg.runs.base import BaseWeights
from tests.support.commands import assert_refused, run_here
from tests.support.small import train_small


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_run_has_the_files_of_another(
    boxes: Path, base: BaseWeights, tmp_path: Path, checkpointed: bool
) -> None:
    """The double of the compiler runs the captured operators as they are, so that not even rounding differs."""
    counter = CompileCounter()
    train_small(boxes, tmp_path / "plain", base)
    with patch.object(torch, "compile", partial(torch.compile, backend=counter)):
        train_small(boxes, tmp_path / "compiled", base, compile=True, gradient_checkpointing=checkpointed)
    # The probe; layers of both SigLIP towers; windowed and global blocks of SAM. Validation is not compiled.
    assert counter.frame_count == 1 + 2 + 2
    for file in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "compiled" / file).read_bytes()


def test_a_machine_without_compiler_is_reported(
    boxes: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        ran = run_here(capsys, "train", "--data", boxes, "--base", small_base, "--compile", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert_refused(ran, "--compile", "No working C++ compiler", "g++")
