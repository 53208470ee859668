"""Fixtures shared by several folders. Fixtures of one file belong into that file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves

if TYPE_CHECKING:
    from tests.support.exported import Exported


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small data set: 10 training and 2 validation images with two phrases each. Read-only."""
    from tests.support.small import write_boxes

    return write_boxes(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small untrained model file and its tokenizer. Read-only."""
    from tests.support.exported import copy_base

    return copy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, boxes: Path, small_base: Path) -> "Exported":
    """Create a small trained run, its exported bundle and its data set. Read-only: change copies."""
    from tests.support.exported import export_small

    return export_small(tmp_path_factory.mktemp("exported"), boxes, small_base)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: small tensors are faster, and sums are equal on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
