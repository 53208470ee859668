"""Installation: one import name, no torch on an edge device, all supported versions of Python."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.support import ROOT
from tests.support.commands import ENTRY, run_alone
from tests.support.exported import Exported
from tests.support.small import SIZE

RUNTIME_VERSIONS = ("3.10", "3.11", "3.12", "3.13")
NOT_THERE = ("torch", "torchvision", "transformers", "segment_anything", "peft", "accelerate", "onnx", "onnxscript")
# Names that a shared environment or a user's folder may well hold: ours must not be mixed up with them.
GENERIC = ("cli.py", "bench.py", "export.py", "tests.py", "engines/__init__.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exported: Exported) -> Path:
    """Create a folder with an image, a bundle, its run and data, and modules with generic names."""
    root = tmp_path_factory.mktemp("folder")
    shutil.copytree(exported.bundle, root / "bundle")
    shutil.copytree(exported.run, root / "runs" / "001")
    shutil.copytree(exported.data, root / "boxes")
    Image.fromarray(np.full((*SIZE, 3), 40, np.uint8)).save(root / "scene.png")
    for name in GENERIC:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("raise SystemExit('a module of the user was imported')\n")
    return root


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of this checkout, without the network."""
    root = tmp_path_factory.mktemp("wheel")
    (checkout := root / "checkout").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, checkout)
    for name in ("rsrefseg", "engines", "export", "bench"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", root, checkout], check=True, env=outside())
    (path,) = root.glob("*.whl")
    return path


class Edge:
    """Link the packages of `pip install rsrefseg[cpu]` and install our wheel."""

    def __init__(self, root: Path, wheel: Path, folder: Path) -> None:
        self.folder, self.venv = folder, root / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        (site,) = (self.venv / "lib").glob("python3*/site-packages")
        for name in distributions("cpu"):
            distribution = metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
        zipfile.ZipFile(wheel).extractall(site)

    def run(self, *arguments: str, code: str = ENTRY) -> subprocess.CompletedProcess[str]:
        """Run a command, or other code, in the folder."""
        command = [self.venv / "bin" / "python", "-c", code, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=outside(), capture_output=True, text=True, errors="replace", check=False
        )

    def json(self, *arguments: str) -> dict:
        """Return the JSON report of a command."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, wheel: Path, folder: Path) -> Edge:
    if "onnxruntime" not in metadata.packages_distributions().get("onnxruntime", ()):
        pytest.skip("this machine has another build of onnxruntime than the extra cpu brings")
    return Edge(tmp_path_factory.mktemp("edge"), wheel, folder)


def outside() -> dict[str, str]:
    """Return the environment variables without those of this Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def distributions(extra: str) -> set[str]:
    """Return all distributions required by an extra on this machine, by normalised name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    to_do = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]
    found: set[tuple[str, str]] = set()
    while to_do:
        requirement = to_do.pop()
        for chosen in ("", *requirement.extras):
            key = (re.sub(r"[-_.]+", "-", requirement.name).lower(), chosen)
            if key not in found:
                found.add(key)
                further = [Requirement(line) for line in metadata.requires(requirement.name) or []]
                to_do += [one for one in further if one.marker is None or one.marker.evaluate({"extra": chosen})]
    return {name for name, _ in found}


def test_a_wheel_holds_one_name_and_every_module(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"rsrefseg"}
    modules = [path for top in ("engines", "export", "bench") for path in (ROOT / top).rglob("*.py")]
    assert {f"rsrefseg/{path.relative_to(ROOT).as_posix()}" for path in modules} <= {*names}
    assert {"rsrefseg/cli.py", "rsrefseg/base/tiny.safetensors", "rsrefseg/train/recipes/b.toml"} <= {*names}


@pytest.mark.parametrize(
    "command",
    [
        ("bench", "--backends", "torch,onnxruntime", "--rounds", "3", "--minutes", "0", "--scenarios", "first_phrase"),
        ("train", "--data", "boxes", "--preset", "tiny", "--from-scratch", "--epochs", "1", "--workers", "1"),
    ],
    ids=lambda command: command[0],
)
def test_generic_names_disturb_no_process(wheel: Path, folder: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The modules are on PYTHONPATH, in front of the packages of the wheel."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    path = os.pathsep.join((str(folder), str(tmp_path)))
    done = run_alone(*command, folder=folder, environment={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", RUNTIME_VERSIONS)
def test_the_runtime_installs_and_runs_on(version: str, wheel: Path, folder: Path, tmp_path: Path) -> None:
    """Run ``pip install rsrefseg[cpu]`` with our pins, then ``infer``; installing needs a package index."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    reachable = subprocess.run([*pip, "download", "--no-deps", "-d", tmp_path, "wheel"], check=False, env=outside())
    if reachable.returncode:
        pytest.skip("no package index can be reached")
    subprocess.run([*pip, "install", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"], check=True, env=outside())
    command = [tmp_path / "venv" / "bin" / "rsrefseg", "infer", "scene.png", "the red box", "--json"]
    done = subprocess.run(command, cwd=folder, env=outside(), stdout=subprocess.PIPE, check=True)
    assert [result["phrase"] for result in json.loads(done.stdout)["results"]] == ["the red box"]


def interpreter(version: str) -> Path | None:
    """Return a Python of this version from PATH or pyenv."""
    found = shutil.which(f"python{version}")
    if found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
        return Path(found)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return next(iter(sorted(root.glob(f"versions/{version}.*/bin/python"))), None)


def test_the_environment_has_our_wheel_and_nothing_of_the_training_side(edge: Edge) -> None:
    assert "torch" in distributions("train")  # the walk that finds no torch for `cpu` would find it
    code = "import numpy, rsrefseg.cli as c, rsrefseg.engines as e; print(*(m.__file__ for m in (c, e, numpy)))"
    assert all(Path(file).is_relative_to(edge.venv) for file in edge.run(code=code).stdout.split())
    abilities = {ability["name"]: ability for ability in edge.json("doctor")["abilities"]}
    training = abilities["train, merge and export (torch)"]
    assert training["works"] is False
    assert set(NOT_THERE) <= set(training["detail"].partition(" missing")[0].split(", "))
    assert "pip install 'rsrefseg[train]'" in training["detail"]
    assert abilities["infer, parity and bench on the CPU (onnxruntime)"]["works"] is True


def test_importing_the_package_is_cheap_and_its_names_work(edge: Edge) -> None:
    code = """
import sys
import rsrefseg
assert not {"numpy", "cv2", "PIL", "rasterio", "onnxruntime", "tokenizers", "safetensors", "rich"} & set(sys.modules)
from rsrefseg import Segmenter, model_config, open_dataset, read_image
with Segmenter.open("bundle") as segmenter:
    (answer,) = segmenter.segment(read_image("scene.png"), ["the red box"])
print(answer.mask.shape)
"""
    done = edge.run(code=code)
    assert (done.returncode, done.stdout.strip()) == (0, str(SIZE)), done.stderr


def test_infer_parity_and_bench_work(edge: Edge) -> None:
    document = edge.json("infer", "scene.png", "the red box", "the blue box")
    assert [result["phrase"] for result in document["results"]] == ["the red box", "the blue box"]
    assert all(Image.open(edge.folder / file).size == SIZE[::-1] for file in document["files"][:2])
    assert edge.json("parity")["holds"] is True
    measured = edge.json("bench", "--rounds", "3")
    assert [runner["name"] for runner in measured["runners"]] == ["onnxruntime"]
    assert any("without torch: PyTorch is not installed" in note for note in measured["notes"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data", "boxes"),
        ("merge",),
        ("export",),
        ("convert", "boxes", "--out", "run"),
        ("eval", "--data", "boxes", "--split", "val"),
        ("parity", "--data", "boxes"),
        ("bench", "--backends", "torch"),
        ("data", "synth", "scenes", "--train", "1", "--val", "0", "--test", "0"),
        ("infer", "scene.png", "the red box"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_another_extra_names_it_in_one_line(edge: Edge, arguments: tuple[str, ...]) -> None:
    extra, code = "train", ENTRY
    if arguments[0] == "infer":  # a device without any extra
        extra, code = "cpu", f"import sys; sys.modules['onnxruntime'] = None; {ENTRY}"
    done = edge.run(*arguments, code=code)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'rsrefseg[{extra}]'" in done.stderr
