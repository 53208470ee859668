"""How commands end: exit codes that scripts can trust, one line for what went wrong; doctor and progress."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rsrefseg import cli
from rsrefseg.engines import doctor
from rsrefseg.engines.system.progress import ProgressLine
from tests.support import ROOT
from tests.support.commands import ENTRY, assert_refused, run_alone, run_here
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.places import beside_run

MARKED = "[red]x[/bold] :smile:"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return beside_run(exported, tmp_path, monkeypatch)


# Exit codes


def test_a_check_that_does_not_hold_ends_with_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(Path("boxes/images/rrsisd/JPEGImages").iterdir()).unlink()
    ran = run_here(capsys, "data", "check", "boxes", "--json")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("rsrefseg: 'boxes' has 1 kinds of faults")
    assert json.loads(ran.out)["faults"][0]["count"] == 1
    assert run_alone("data", "check", "boxes", folder=place).returncode == 1


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/secret/a.bin"),
            2,
            "cannot use '/secret/a.bin': Permission",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 2, "cannot use 'a' and 'b': Invalid link"),
        (OSError("a library's own\nwords"), 2, "a library's own words"),
        (OSError(), 2, "OSError"),
        (MemoryError(), 2, "out of memory"),
        (ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"), 2, "pip install 'rsrefseg[train]'"),
        (ImportError("cannot import name 'x' from 'torch'", name="torch"), 2, "'torch', which is installed but broken"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_may_happen_anywhere_is_one_line(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.delenv("RSREFSEG_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "examine", fails)
    ran = run_here(capsys, "doctor", "--json")
    assert ran.code == code
    if code == 2:
        assert_refused(ran, told)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ModuleNotFoundError("No module named 'x'", name="x"), KeyError(1)]
)
def test_what_nobody_expected_is_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fails)
    with pytest.raises(type(error)):
        cli.run_command(["doctor"])


def test_debugging_shows_where_and_changes_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSREFSEG_DEBUG", "1")
    ran = run_here(capsys, "infer", "scene.png", "a box")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("rsrefseg: no bundle at 'bundle'")


def test_a_reader_who_leaves_early_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_alone("doctor", folder=tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_alone("doctor", *options, folder=tmp_path, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "rsrefseg: cannot write to standard output: No space left on device\n"


def test_without_standard_streams_a_command_still_does_its_work(place: Path) -> None:
    """As a service may start it."""
    arguments = "infer scene.jpg 'the red box'"
    command = f"exec '{sys.executable}' -c '{ENTRY}' {arguments} 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=place).returncode == 0
    assert (place / "results" / "scene.json").exists()
    refused = f"exec '{sys.executable}' -c '{ENTRY}' {arguments} --bundle none 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", refused], cwd=place).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["infr"], "No such command 'infr'"),
        (["infer", "a.png", "x", "--bakend", "y"], "--backend"),
        (["--versio"], "--version"),
        (["train"], "--data"),
        (["infer"], "image"),
        (["infer", "a.png"], "phrases"),
        (["infer", "a.png", "x", "--max-pixels", "0"], "--max-pixels"),
        (["infer", "a.png", "x", "--max-pixels", "many"], "--max-pixels"),
        (["bench", "--rounds", "1"], "--rounds"),
        (["data", "synth", "out", "--size", "9999999"], "--size"),
        (["doctor", "now"], "now"),
        (["export", "--out"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_slip_of_the_pen_is_named(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, *arguments)
    assert_refused(ran, "(see --help)")
    assert told.lower() in ran.err.lower()  # releases of the parser write IMAGE or image


def test_a_precision_plan_without_half_precision_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(run_here(capsys, "export", "--plan", "plan.json"), "give --fp16 with it")


def test_commands_work_as_typed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No argument but those that say what is wanted: the latest run, ./bundle or $RSREFSEG_BUNDLE, ./results."""
    from rsrefseg.export import export as bundle

    monkeypatch.setattr(bundle, "export_graph", Shortcut(Path(shutil.copytree(place / "bundle", place / "graphs"))))
    shutil.rmtree("bundle")
    assert run_here(capsys, "merge").code == 0
    assert run_here(capsys, "export").code == 0
    assert run_here(capsys, "infer", "scene.jpg", "the red box").code == 0
    assert Path("results/scene.json").exists()
    Path("bundle").rename("elsewhere")
    assert_refused(run_here(capsys, "parity"), "no bundle at 'bundle'")
    monkeypatch.setenv("RSREFSEG_BUNDLE", "elsewhere")
    assert run_here(capsys, "parity").code == 0


def test_installed_versions_of_the_parser_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    """Typer brings a parser of its own in some releases and uses click in others: nothing is imported from either."""
    source = (ROOT / "cli.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (click|typer\._?click)", source, re.MULTILINE)


# Doctor


def abilities() -> dict[str, tuple[bool, str]]:
    return {ability.name: (ability.works, ability.detail) for ability in doctor.examine().abilities}


def test_doctor_knows_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = abilities()
    assert found["infer, parity and bench on the CPU (onnxruntime)"][0] is True
    assert found["train, merge and export (torch)"][0] is True
    assert f"torch {metadata.version('torch')}" in found["train, merge and export (torch)"][1]
    text = run_here(capsys, "doctor").out
    assert [line[:3] for line in text.splitlines()[1:]] == ["yes" if works else "no " for works, _ in found.values()]


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "peft" else found(name))
    works, detail = abilities()["train, merge and export (torch)"]
    assert not works
    assert detail == "peft missing: `pip install 'rsrefseg[train]'`"


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, "both installed"),
    ],
)
def test_doctor_looks_at_distributions(installed: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert any(told in detail for works, detail in abilities().values() if not works)


def test_doctor_never_contradicts_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("infer, parity and bench on the CPU (onnxruntime)", "the same on an NVIDIA GPU (onnxruntime-cuda)"):
        works, detail = abilities()[name]
        assert not works
        assert "onnxruntime is not installed: pip install 'rsrefseg[c" in detail


def test_the_packages_of_training_are_all_known() -> None:
    """A missing one must end in the line that names the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=]", line)[0] for line in project["optional-dependencies"]["train"]}
    assert {name.replace("-", "_") for name in names} == set(doctor.TRAIN_MODULES)


# Progress


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("title", ["exporting runs/1", f"exporting {MARKED}", "[/]"])
def test_progress_on_a_terminal_is_a_bar_with_the_title_as_it_is(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with ProgressLine(title) as progress:
        progress.update(1, 4, "loss [b]0.5")
        progress.say(f"epoch 1 {MARKED}")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert f"{title}  loss [b]0.5" in plain
    assert f"epoch 1 {MARKED}" in plain
    assert "1/4" in plain


@pytest.mark.parametrize("live", [True, False])
def test_a_bar_that_is_not_live_draws_when_told_and_has_no_thread(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that draws ten times a second takes its time from what is timed meanwhile."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    before = set(threading.enumerate())
    with ProgressLine("measuring", live=live) as progress:
        drawing = set(threading.enumerate()) - before
        assert len(drawing) == (1 if live else 0)
        if not live:
            progress.update(1, 4)
            assert "1/4" in terminal.getvalue()
            progress.update(2, 4)
            assert "2/4" in terminal.getvalue()
            written = len(terminal.getvalue())
            progress.say("torch settled")
            assert "torch settled" in terminal.getvalue()[written:]


def test_progress_elsewhere_is_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with ProgressLine("checking") as progress:
        for done in range(1, 8):
            progress.update(done, 7)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["checking  3/7", "checking  6/7", "checking  7/7"]


@pytest.mark.parametrize("failing", [False, True])
def test_a_bar_is_gone_when_its_work_ends(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    before = sys.stdout

    def work() -> None:
        with ProgressLine("rendering") as progress:
            progress.update(1, 2)
            if failing:
                raise ValueError("stop")

    if failing:
        with pytest.raises(ValueError, match="stop"):
            work()
    else:
        work()
    assert sys.stdout is before
    assert terminal.getvalue().count("\x1b[?25h") == 1, "the cursor is shown again"
