"""Fixtures of the slow tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of this checkout, without the network."""
    root = tmp_path_factory.mktemp("wheel")
    (checkout := root / "checkout").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py", "rsrefseg", "engines", "export", "bench"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, checkout)
        else:
            shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, "--wheel-dir", root, checkout], check=True, env=environment)
    (path,) = root.glob("*.whl")
    return path
