"""Working folders with a bundle and an image, or with all files of a demo."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.exported import Exported

PHRASE = "the red square"
Capsys = pytest.CaptureFixture[str]


def beside_bundle(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a bundle and an image."""
    _enter(folder, monkeypatch)
    shutil.copytree(made, "bundle")
    picture().save("scene.png")
    return folder


def beside_run(exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a bundle, its run, its data and an image under default names."""
    _enter(folder, monkeypatch)
    shutil.copytree(exported.bundle, "bundle")
    shutil.copytree(exported.run, "runs/001")
    shutil.copytree(exported.data, "boxes")
    shutil.copy(next(Path("boxes/images/rrsisd/JPEGImages").iterdir()), "scene.jpg")
    return folder


def _enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RSREFSEG_BUNDLE", "RSREFSEG_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(folder)


def picture(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
