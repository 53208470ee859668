"""What gets installed: one import name, which nothing on the way shadows, on every Python the runtime is for."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.exported import Exported
from tests.support.small import SIZE

RUNTIME_VERSIONS = ("3.10", "3.11", "3.12", "3.13")
# Names that a shared environment or a user's folder may well hold: ours must not be mixed up with them.
GENERIC = ("cli.py", "bench.py", "export.py", "tests.py", "engines/__init__.py")


@pytest.fixture
def folder(tmp_path: Path, exported: Exported) -> Path:
    """A folder with an image, a bundle, the run it came from and its data, and with modules of generic names."""
    shutil.copytree(exported.bundle, tmp_path / "bundle")
    shutil.copytree(exported.run, tmp_path / "runs" / "001")
    shutil.copytree(exported.data, tmp_path / "boxes")
    Image.fromarray(np.full((*SIZE, 3), 40, np.uint8)).save(tmp_path / "scene.png")
    for name in GENERIC:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a module of the user was imported')\n")
    return tmp_path


def test_a_wheel_holds_one_name_and_every_module(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"rsrefseg"}
    modules = {
        path.relative_to(ROOT).as_posix()
        for top in ("engines", "export", "bench")
        for path in (ROOT / top).rglob("*.py")
    }
    assert {f"rsrefseg/{module}" for module in modules} <= {*names}
    assert {"rsrefseg/cli.py", "rsrefseg/base/tiny.safetensors", "rsrefseg/train/recipes/b.toml"} <= {*names}


@pytest.mark.parametrize(
    "command",
    [
        ("infer", "scene.png", "the red box"),
        ("parity",),
        ("bench", "--backends", "torch,onnxruntime", "--rounds", "3", "--minutes", "0", "--scenarios", "first_phrase"),
        ("train", "--data", "boxes", "--preset", "tiny", "--from-scratch", "--epochs", "1", "--workers", "1"),
    ],
    ids=lambda command: command[0],
)
def test_modules_of_generic_names_disturb_nothing(
    wheel: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]
) -> None:
    """They lie on PYTHONPATH and in the working directory; the packages are those of the wheel."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from rsrefseg.cli import main; main()", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(site)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def interpreter(version: str) -> Path | None:
    """A Python of this version: on PATH, or installed by pyenv."""
    if (found := shutil.which(f"python{version}")) is not None and _runs(Path(found)):
        return Path(found)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return next(iter(sorted(root.glob(f"versions/{version}.*/bin/python"))), None)


def _runs(python: Path) -> bool:
    return subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("version", RUNTIME_VERSIONS)
def test_the_runtime_installs_and_runs_on(version: str, wheel: Path, folder: Path, tmp_path: Path) -> None:
    """``pip install rsrefseg[cpu]`` with our pins, then ``infer``; the first part of it needs a package index."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    reachable = subprocess.run([*pip, "download", "--no-deps", "-d", tmp_path, "wheel"], check=False, env=environment)
    if reachable.returncode:
        pytest.skip("no package index can be reached")
    subprocess.run([*pip, "install", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"], check=True, env=environment)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "rsrefseg", "infer", "scene.png", "the red box", "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [result["phrase"] for result in document["results"]] == ["the red box"]
