"""Ctrl-C, closed pipes, broken packages and other locales print one line, never a traceback."""

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
from tests.support.commands import ENTRY, run_alone

INFER = ("infer", "scene.png", "the red square", "--backend", "onnxruntime")
MISSING = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')"
BROKEN = "raise ImportError('libGL.so.1: cannot open shared object file')"
UNLOADABLE = "import ctypes; ctypes.CDLL('libnothing.so.1')"  # raises OSError
INTERRUPTED = f"""
import os, signal, sys

event, name, kill = sys.argv.pop(1).split(":")

def interrupt(found, arguments):
    global event
    if found == event and name in str(arguments[0]):
        event = None
        os.killpg(0, signal.SIGINT) if kill else signal.raise_signal(signal.SIGINT)

sys.addaudithook(interrupt)
{ENTRY}
"""


def assert_one_line(done: subprocess.CompletedProcess[str], *facts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rsrefseg: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(fact in done.stderr for fact in facts), done.stderr


# Packages


def with_fake(package: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a module of that name in front of the real one."""
    folder = Path("fake")
    folder.mkdir()
    (folder / f"{package}.py").write_text(code.format(package))
    return run_alone(*arguments, environment={"PYTHONPATH": os.pathsep.join([str(folder.absolute()), str(ROOT)])})


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
    assert_one_line(with_fake(package, code, *INFER), package, fix)


@pytest.mark.parametrize("package", ["tokenizers", "msgspec", "onnxruntime", "rich"])
def test_doctor_shows_a_broken_package(package: str, place: Path) -> None:
    done = with_fake(package, UNLOADABLE, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    broken = [ability for ability in json.loads(done.stdout)["abilities"] if not ability["works"]]
    assert any(package in ability["detail"] and "libnothing" in ability["detail"] for ability in broken)


def test_a_module_that_python_3_10_lacks_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    for error in (ImportError("cannot import name 'StrEnum'", name="enum"), ModuleNotFoundError(name="tomllib")):
        assert "Python 3.11" in str(packages.import_problem(error))


def test_every_declared_package_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = (project["dependencies"], project["optional-dependencies"]["train"])
    runtime, train = ({re.split(r"[<>=]", line)[0] for line in lines} for lines in groups)
    assert runtime == set(packages.RUNTIME.values())
    assert {name.replace("-", "_") for name in train} == set(packages.TRAIN)


# Locale and standard streams


@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_names_that_an_ascii_locale_cannot_encode(output: tuple[str, ...], place: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    latin = os.fsencode("scene") + b"\xe9.png"
    Path("scene.png").rename(os.fsdecode(latin))
    done = run_alone("infer", latin, b"the red square \xe9\xf0", *output, environment=ascii_only)
    assert done.returncode == 0, done.stderr
    if output:
        assert json.loads(done.stdout)["results"][0]["phrase"].startswith("the red square")
    assert_one_line(run_alone("infer", "none-é.png", "x", *output, environment=ascii_only), "none-")
    Path(os.fsdecode(latin)).rename("é.png")
    done = run_alone("infer", "é.png", "the red square", *output, environment=ascii_only)
    assert done.returncode == 0 or ("UTF-8" in done.stderr and done.stderr.count("\n") == 1), done.stderr


@pytest.mark.parametrize("arguments", [["doctor"], ["--version"]], ids=str)
def test_a_reader_who_leaves_early_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_alone(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--version"]], ids=str)
def test_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        assert_one_line(run_alone(*arguments, stdout=full), "standard output: No space left on device")


def test_a_command_works_without_standard_streams(place: Path) -> None:
    """Start the command as a service does."""
    command = f"exec '{sys.executable}' -c '{ENTRY}' infer scene.png 'the red square'"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    for options, code in (("", 0), ("--bundle none", 2)):
        shell = ["sh", "-c", f"{command} {options} 0<&- 1>&- 2>&-"]
        assert subprocess.run(shell, env=variables, check=False).returncode == code
    assert Path("results/scene.json").exists()


# Ctrl-C


IMPORTS = ("rsrefseg.cli", "typer.main", "numpy._core", "cv2", "onnxruntime.capi")
FILES = ("open:bundle.json", "open:sam_decoder.onnx", "open:.partial.", "os.rename:.partial.")


@pytest.mark.parametrize("moment", [*(f"import:{module}" for module in IMPORTS), *FILES])
def test_ctrl_c_at_any_moment_is_one_line_and_leaves_no_part_of_a_file(moment: str, place: Path) -> None:
    done = run_alone(f"{moment}:", *INFER, script=INTERRUPTED)
    assert (done.returncode, done.stderr) == (130, "rsrefseg: interrupted\n")
    assert not list(Path().glob("results/.*"))


def test_ctrl_c_with_worker_processes_is_one_line(tmp_path: Path) -> None:
    """A terminal sends the signal to all processes of the command."""
    arguments = ["data", "synth", "scenes", "--train", "40", "--val", "0", "--test", "0", "--workers", "2"]
    done = run_alone("open:.partial.:all", *arguments, folder=tmp_path, script=INTERRUPTED, start_new_session=True)
    assert (done.returncode, done.stderr) == (130, "rsrefseg: interrupted\n")
    assert list(tmp_path.iterdir()) == []
