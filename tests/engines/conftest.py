"""The bundle made by hand that all engines are tested on."""

from pathlib import Path

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.made_bundle import make_bundle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder. Not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    """It, opened."""
    return Bundle.open(folder)
