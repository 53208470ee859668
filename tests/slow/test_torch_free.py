"""What an edge device installs: an environment of its own with `rsrefseg[cpu]` and nothing of the training side."""

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
from tests.support.exported import Exported
from tests.support.small import SIZE

NOT_THERE = ("torch", "torchvision", "transformers", "segment_anything", "peft", "accelerate", "onnx", "onnxscript")
RSREFSEG = "from rsrefseg.cli import main; main()"  # what the console script runs


class Edge:
    """A virtual environment and a folder to work in."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return subprocess.run(
            [self.python, "-c", code, *arguments],
            cwd=self.folder,
            env=kept | {"RSREFSEG_BUNDLE": "bundle"},
            capture_output=True,
            text=True,
            check=False,
        )

    def rsrefseg(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(RSREFSEG, *arguments)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, exported: Exported, wheel: Path) -> Edge:
    """The packages that `pip install rsrefseg[cpu]` would bring, linked from here, and our wheel."""
    if "onnxruntime" not in metadata.packages_distributions().get("onnxruntime", ()):
        pytest.skip("this machine has another build of onnxruntime than the extra cpu brings")
    root = tmp_path_factory.mktemp("edge")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    (site,) = (root / "venv" / "lib").glob("python3*/site-packages")
    for name in distributions("cpu"):
        link_distribution(site, name)
    zipfile.ZipFile(wheel).extractall(site)
    work = root / "work"
    work.mkdir()
    shutil.copytree(exported.bundle, work / "bundle")
    Image.fromarray(np.full((*SIZE, 3), 40, np.uint8)).save(work / "scene.png")
    return Edge(root / "venv" / "bin" / "python", work)


def distributions(extra: str) -> set[str]:
    """Every distribution that our requirements with an extra ask for on this machine, by normalised name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    open_ends = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]
    found: set[tuple[str, str]] = set()
    while open_ends:
        requirement = open_ends.pop()
        for chosen in ("", *requirement.extras):
            key = (re.sub(r"[-_.]+", "-", requirement.name).lower(), chosen)
            if key not in found:
                found.add(key)
                further = [Requirement(line) for line in metadata.requires(requirement.name) or []]
                open_ends += [one for one in further if one.marker is None or one.marker.evaluate({"extra": chosen})]
    return {name for name, _ in found}


def link_distribution(site: Path, name: str) -> None:
    """Link the folders and modules of an installed distribution, and what is known about it."""
    distribution = metadata.distribution(name)
    for file in distribution.files or []:
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def test_the_environment_lacks_the_training_side(edge: Edge) -> None:
    code = "import sys, importlib.util as u; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    done = edge.run(code, *NOT_THERE, "pycocotools")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert not {"torch", "transformers"} & distributions("cpu")
    assert "torch" in distributions("train")  # the walk that found no torch would find it


def test_the_packages_are_those_of_the_environment(edge: Edge) -> None:
    """Not the ones under development, which a path left over would show."""
    code = "import numpy, rsrefseg.cli as c, rsrefseg.engines as e; print(*(m.__file__ for m in (c, e, numpy)))"
    done = edge.run(code)
    assert done.returncode == 0, done.stderr
    venv = edge.python.parents[1]
    assert [Path(file).is_relative_to(venv) for file in done.stdout.split()] == [True] * 3


def test_importing_engines_is_cheap_and_its_names_work(edge: Edge) -> None:
    code = """
import sys
import rsrefseg
heavy = {"numpy", "cv2", "PIL", "onnxruntime", "tokenizers", "safetensors", "rich"} & set(sys.modules)
assert not heavy, heavy
from rsrefseg import Segmenter, read_image
with Segmenter.open("bundle") as segmenter:
    (answer,) = segmenter.segment(read_image("scene.png"), ["the red box"])
from rsrefseg import Segmenter as same, model_config, open_dataset
assert same is Segmenter
print(answer.mask.shape)
"""
    done = edge.run(code)
    assert (done.returncode, done.stdout.strip()) == (0, str(SIZE)), done.stderr


def test_infer_works(edge: Edge) -> None:
    done = edge.rsrefseg("infer", "scene.png", "the red box", "the blue box", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [result["phrase"] for result in document["results"]] == ["the red box", "the blue box"]
    for file in document["files"][:2]:
        assert Image.open(edge.folder / file).size == (SIZE[1], SIZE[0])


def test_an_edge_device_proves_parity_by_itself(edge: Edge) -> None:
    done = edge.rsrefseg("parity", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["holds"] is True


def test_bench_measures_what_is_there_and_says_what_is_not(edge: Edge) -> None:
    done = edge.rsrefseg("bench", "--rounds", "3", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [runner["name"] for runner in document["runners"]] == ["onnxruntime"]
    assert "without torch: PyTorch is not installed" in done.stderr


def test_doctor_says_what_is_missing(edge: Edge) -> None:
    done = edge.rsrefseg("doctor", "--json")
    assert done.returncode == 0, done.stderr
    abilities = {ability["name"]: ability for ability in json.loads(done.stdout)["abilities"]}
    training = abilities["train, merge and export (torch)"]
    assert training["works"] is False
    assert set(NOT_THERE) <= set(training["detail"].partition(" missing")[0].split(", "))
    assert "pip install 'rsrefseg[train]'" in training["detail"]
    assert abilities["infer, parity and bench on the CPU (onnxruntime)"]["works"] is True


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
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_the_training_side_names_the_extra_in_one_line(
    edge: Edge, exported: Exported, arguments: tuple[str, ...]
) -> None:
    if not (edge.folder / "boxes").exists():
        shutil.copytree(exported.data, edge.folder / "boxes")
        shutil.copytree(exported.run, edge.folder / "runs" / "001")
    done = edge.rsrefseg(*arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "pip install 'rsrefseg[train]'" in done.stderr
    assert done.stdout == ""


def test_a_missing_runtime_is_named_with_its_extra(edge: Edge) -> None:
    """The same environment without any of the extras."""
    hidden = edge.run("import sys; sys.modules['onnxruntime'] = None; " + RSREFSEG, "infer", "scene.png", "the red box")
    assert hidden.returncode == 2
    assert "pip install 'rsrefseg[cpu]'" in hidden.stderr
    assert len(hidden.stderr.strip().splitlines()) == 1
