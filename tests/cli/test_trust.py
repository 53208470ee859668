"""Broken installations, names that the locale cannot encode, and Ctrl-C at any moment: one line, never a traceback."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rsrefseg.engines.system import packages
from tests.support import ROOT
from tests.support.made_bundle import make_bundle
from tests.support.places import beside_bundle

INFER = ("infer", "scene.png", "the red square", "--backend", "onnxruntime")
MISSING = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')"
BROKEN = "raise ImportError('libGL.so.1: cannot open shared object file')"
UNLOADABLE = "import ctypes; ctypes.CDLL('libnothing.so.1')"  # raises OSError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return beside_bundle(made, tmp_path, monkeypatch)


def run(*arguments: str | bytes, script: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m rsrefseg`` in the working folder, or a script in its place."""
    start = ["-m", "rsrefseg"] if script is None else ["-c", script]
    path = os.pathsep.join([environment.pop("first", ""), str(ROOT)])
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *facts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rsrefseg: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(fact in done.stderr for fact in facts), done.stderr


def fake(package: str, code: str) -> str:
    """A folder with a module of that name, to be found before the real one."""
    folder = Path("fake") / package
    folder.mkdir(parents=True)
    (folder / f"{package}.py").write_text(code.format(package))
    return str(folder.absolute())


@pytest.mark.parametrize(
    ("package", "code", "fix"),
    [
        ("cv2", BROKEN, "pip install --force-reinstall opencv-python-headless"),
        ("cv2", MISSING, "pip install opencv-python-headless"),
        ("PIL", BROKEN, "pip install --force-reinstall pillow"),
        ("tokenizers", UNLOADABLE, "pip install --force-reinstall tokenizers"),
        ("msgspec", MISSING, "pip install msgspec"),
        ("onnxruntime", UNLOADABLE, "pip install 'rsrefseg[cpu]'"),
        ("typer", BROKEN, "pip install --force-reinstall typer"),
    ],
)
def test_a_broken_or_missing_package_is_named_with_its_fix(package: str, code: str, fix: str, place: Path) -> None:
    assert_one_line(run(*INFER, first=fake(package, code)), package, fix)


@pytest.mark.parametrize("package", ["tokenizers", "msgspec", "onnxruntime", "rich"])
def test_doctor_shows_a_broken_package(package: str, place: Path) -> None:
    done = run("doctor", "--json", first=fake(package, UNLOADABLE))
    assert done.returncode == 0, done.stderr
    broken = [ability for ability in json.loads(done.stdout)["abilities"] if not ability["works"]]
    assert any(package in ability["detail"] and "libnothing" in ability["detail"] for ability in broken)


def test_every_declared_package_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=]", line)[0] for line in lines}

    assert names(project["dependencies"]) == set(packages.RUNTIME.values())
    assert {name.replace("-", "_") for name in names(project["optional-dependencies"]["train"])} == set(packages.TRAIN)


@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_names_that_an_ascii_locale_cannot_encode(output: tuple[str, ...], place: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    latin = os.fsencode("scene") + b"\xe9.png"
    Path("scene.png").rename(os.fsdecode(latin))
    done = run("infer", latin, b"the red square \xe9\xf0", *output, **ascii_only)
    assert done.returncode == 0, done.stderr
    if output:
        assert json.loads(done.stdout)["results"][0]["phrase"].startswith("the red square")
    assert_one_line(run("infer", "none-é.png", "x", *output, **ascii_only), "none-")
    Path(os.fsdecode(latin)).rename("é.png")
    done = run("infer", "é.png", "the red square", *output, **ascii_only)
    assert done.returncode == 0 or ("UTF-8" in done.stderr and done.stderr.count("\n") == 1), done.stderr


INTERRUPTED = """
import signal, sys

event, name = sys.argv.pop(1).split(":")

def interrupt(found, arguments):
    global event
    if found == event and name in str(arguments[0]):
        event = None
        signal.raise_signal(signal.SIGINT)

sys.addaudithook(interrupt)
from rsrefseg.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "import:rsrefseg.cli",
        "import:typer.main",
        "import:numpy._core",
        "import:cv2",
        "import:onnxruntime.capi",
        "open:bundle.json",
        "open:sam_decoder.onnx",
        "open:.partial.",
        "os.rename:.partial.",
    ],
)
def test_ctrl_c_at_any_moment_is_one_line_and_leaves_no_part_of_a_file(moment: str, place: Path) -> None:
    done = run(moment, *INFER, script=INTERRUPTED)
    assert (done.returncode, done.stderr) == (130, "rsrefseg: interrupted\n")
    assert not list(Path().glob("results/.*"))


def test_ctrl_c_with_worker_processes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to all processes of the command."""
    monkeypatch.chdir(tmp_path)
    script = INTERRUPTED.replace("signal.raise_signal(", "__import__('os').killpg(0, ")
    arguments = ["data", "synth", "scenes", "--train", "40", "--val", "0", "--test", "0", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", script, "open:.partial.", *arguments],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "rsrefseg: interrupted\n"
    assert list(tmp_path.iterdir()) == []
