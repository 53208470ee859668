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
from importlib import metadata
from pathlib import Path

import pytest

from rsrefseg import cli
from rsrefseg.engines import doctor
from rsrefseg.engines.system.progress import ProgressLine
from tests.support.commands import ENTRY, assert_refused, run_alone, run_here
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.places import beside_run

MARKED = "[red]x[/bold] :smile:"
CPU, TRAINING = "infer, parity and bench on the CPU (onnxruntime)", "train, merge and export (torch)"
pytestmark = pytest.mark.usefixtures("one_thread")


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
    ("error", "fact"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/secret/a.bin"), "'/secret/a.bin': Permission"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "'a' and 'b': Invalid link"),
        (OSError("a library's own\nwords"), "a library's own words"),
        (OSError(), "OSError"),
        (MemoryError(), "out of memory"),
        (UnicodeEncodeError("ascii", "ü.png", 0, 1, "x"), "LC_ALL=C.UTF-8"),
        (ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"), "pip install"),
        (ImportError("cannot import name 'x' from 'torch'", name="torch"), "'torch' is installed but broken"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_may_happen_anywhere_is_one_line(
    error: BaseException, fact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.delenv("RSREFSEG_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "examine", fails)
    assert_refused(run_here(capsys, "doctor", "--json"), fact)


def test_an_interruption_hidden_in_another_error_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native modules raise ImportError when Ctrl-C hits their import."""

    def fails() -> None:
        raise ImportError("initialization failed", name="tokenizers") from KeyboardInterrupt()

    monkeypatch.setattr(doctor, "examine", fails)
    ran = run_here(capsys, "doctor")
    assert (ran.code, ran.err) == (130, "rsrefseg: interrupted\n")


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


@pytest.mark.parametrize("arguments", [["doctor"], ["--version"]], ids=str)
def test_a_reader_who_leaves_early_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_alone(*arguments, folder=tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--version"]], ids=str)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_alone(*arguments, folder=tmp_path, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "rsrefseg: cannot write to standard output: No space left on device\n"


def test_a_closed_output_leaves_that_of_the_calling_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the program itself redirects its standard output, when it ends."""

    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            return 1

    before = os.fstat(1)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert cli.run_command(["doctor"])[0] == 0
    assert os.fstat(1) == before


def test_without_standard_streams_a_command_still_does_its_work(place: Path) -> None:
    """As a service may start it."""
    arguments = "infer scene.jpg 'the red box'"
    command = f"exec '{sys.executable}' -c '{ENTRY}' {arguments} 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=place).returncode == 0
    assert (place / "results" / "scene.json").exists()
    refused = f"exec '{sys.executable}' -c '{ENTRY}' {arguments} --bundle none 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", refused], cwd=place).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["infr"], "No such command 'infr'"),
        (["infer", "a.png", "x", "--bakend", "y"], "--backend"),
        (["train"], "--data"),
        (["infer"], "image"),
        (["infer", "a.png"], "phrases"),
        (["infer", "a.png", "x", "--max-pixels", "0"], "--max-pixels"),
        (["bench", "--rounds", "1"], "--rounds"),
        (["data", "synth", "out", "--size", "9999999"], "--size"),
        (["doctor", "now"], "now"),
        (["export", "--out"], "--out"),
        (["export", "--plan", "plan.json"], "--fp16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument_is_named(arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, *arguments)
    assert_refused(ran)
    assert fact.lower() in ran.err.lower()  # releases of the parser write IMAGE or image


def test_commands_work_without_options(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults are the latest run, ./bundle or $RSREFSEG_BUNDLE, and ./results."""
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


# Doctor


def abilities() -> dict[str, tuple[bool, str]]:
    return {ability.name: (ability.works, ability.detail) for ability in doctor.examine().abilities}


def test_doctor_knows_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = abilities()
    assert found[CPU][0] is True
    assert found[TRAINING][0] is True
    assert f"torch {metadata.version('torch')}" in found[TRAINING][1]
    text = run_here(capsys, "doctor").out
    assert [line[:3] for line in text.splitlines()[1:]] == ["yes" if works else "no " for works, _ in found.values()]


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "peft" else found(name))
    assert abilities()[TRAINING] == (False, "peft missing: `pip install 'rsrefseg[train]'`")
    monkeypatch.setattr(doctor.metadata, "version", lambda package: "1")
    works, detail = abilities()[CPU]
    assert not works
    assert "onnxruntime and onnxruntime-gpu are both installed" in detail


def test_doctor_never_contradicts_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in (CPU, "the same on an NVIDIA GPU (onnxruntime-cuda)"):
        works, detail = abilities()[name]
        assert not works
        assert "onnxruntime is not installed: pip install 'rsrefseg[c" in detail


# Progress


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return terminal


def test_progress_on_a_terminal_is_a_bar_with_the_title_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, before = on_terminal(monkeypatch), sys.stdout

    def work() -> None:
        with ProgressLine(f"exporting {MARKED}") as progress:
            progress.update(1, 4, "loss [b]0.5")
            progress.say(f"epoch 1 {MARKED}")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    for text in (f"exporting {MARKED}  loss [b]0.5", f"epoch 1 {MARKED}", "1/4"):
        assert text in plain
    assert sys.stdout is before
    assert terminal.getvalue().count("\x1b[?25h") == 1, "the cursor is shown again"


@pytest.mark.parametrize("live", [True, False])
def test_a_bar_that_is_not_live_draws_when_updated_and_has_no_thread(
    live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that draws ten times a second would take its time from what is measured."""
    terminal = on_terminal(monkeypatch)
    before = set(threading.enumerate())
    with ProgressLine("measuring", live=live) as progress:
        assert len(set(threading.enumerate()) - before) == (1 if live else 0)
        if not live:
            progress.update(1, 4)
            assert "1/4" in terminal.getvalue()
            progress.say("torch settled")
            assert "torch settled" in terminal.getvalue()


def test_progress_elsewhere_is_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with ProgressLine("checking") as progress:
        for done in range(1, 8):
            progress.update(done, 7)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["checking  3/7", "checking  6/7", "checking  7/7"]
