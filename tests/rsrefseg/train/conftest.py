"""Fixtures of the training tests."""

from pathlib import Path

import pytest

from rsrefseg.runs.base import BaseWeights, from_file


@pytest.fixture(scope="session")
def base(small_base: Path) -> BaseWeights:
    return from_file(small_base)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """All tests of this folder train small models."""
