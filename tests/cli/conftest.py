"""The folders that commands are run in."""

from pathlib import Path

import pytest

from tests.support.exported import Exported
from tests.support.made_bundle import make_bundle
from tests.support.places import beside_bundle, beside_run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made bundle. Not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a made bundle and an image."""
    return beside_bundle(made, tmp_path, monkeypatch)


@pytest.fixture
def demo_place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a bundle, its run, their data and an image."""
    return beside_run(exported, tmp_path, monkeypatch)
