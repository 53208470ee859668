"""Working folders for commands."""

from pathlib import Path

import pytest

from tests.support.exported import Exported
from tests.support.made_bundle import make_bundle
from tests.support.places import beside_bundle, beside_run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small hand-written bundle. Read-only."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a hand-written bundle and an image."""
    return beside_bundle(made, tmp_path, monkeypatch)


@pytest.fixture
def demo_place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a bundle, its run, their data and an image."""
    return beside_run(exported, tmp_path, monkeypatch)
