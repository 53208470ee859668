"""Exit codes: 1 for a failed check, 2 and one line for an error, 130 for Ctrl-C."""

import errno
import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from rsrefseg import cli
from rsrefseg.engines import doctor
from tests.support.commands import assert_refused, run_alone, run_here
from tests.support.places import PHRASE, Capsys

pytestmark = pytest.mark.usefixtures("one_thread")
INTERRUPTED_IMPORT = ImportError("initialization failed", name="tokenizers")
INTERRUPTED_IMPORT.__cause__ = KeyboardInterrupt()  # native modules raise this when Ctrl-C hits their import

WRONG_ARGUMENTS = [
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
    (["infer", "scene.png", PHRASE, "--backend", "tensorrrt"], "'tensorrrt': known are auto, onnxruntime, "),
    (["parity", "--backend", "tensorrrt"], "'tensorrrt': known are auto, onnxruntime, "),
    (["eval", "--data", "x", "--backend", "tensorrrt"], "'tensorrrt': known are auto, onnxruntime, "),
    (["bench", "--backends", "onnxruntime,tensorrrt"], "'tensorrrt': known are torch, "),
    (["infer", "none.png", PHRASE], "no image at 'none.png'"),
    (["infer", "scene.png", PHRASE, "--max-pixels", "2399"], "60 x 40 = 2,400 pixels"),
    (["infer", "scene.png", PHRASE, ""], "empty phrase"),
    (["infer", "scene.png", PHRASE, "x" * 5000], "5000 characters"),
    (["infer", "scene.png", PHRASE, "🚢🚢🚢"], "no known word"),
    (["infer", "scene.png", PHRASE, "--bundle", "none"], "no bundle at 'none': make one with `rsrefseg export`"),
    (["infer", "scene.png", PHRASE, "--bundle", "scene.png"], "'scene.png'"),
]


@pytest.mark.parametrize(("arguments", "fact"), WRONG_ARGUMENTS, ids=[" ".join(row[0])[:60] for row in WRONG_ARGUMENTS])
def test_a_wrong_argument_is_named(arguments: list[str], fact: str, place: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, *arguments)
    assert_refused(ran)
    assert fact.lower() in ran.err.lower()  # releases of the parser write IMAGE or image
    assert not Path("results").exists(), "nothing is written for what was right"


def test_a_check_that_does_not_hold_ends_with_1(demo_place: Path, capsys: Capsys) -> None:
    next(Path("boxes/images/rrsisd/JPEGImages").iterdir()).unlink()
    ran = run_here(capsys, "data", "check", "boxes", "--json")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("rsrefseg: 'boxes' has 1 kind(s) of faults")
    assert json.loads(ran.out)["faults"][0]["count"] == 1
    assert run_alone("data", "check", "boxes").returncode == 1


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``rsrefseg doctor`` raise an error."""
    monkeypatch.delenv("RSREFSEG_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "examine", Mock(side_effect=error))


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
def test_an_error_is_one_line(error: BaseException, fact: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(error, monkeypatch)
    assert_refused(run_here(capsys, "doctor", "--json"), fact)


def test_an_interruption_hidden_in_another_error_is_one(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(INTERRUPTED_IMPORT, monkeypatch)
    ran = run_here(capsys, "doctor")
    assert (ran.code, ran.err) == (130, "rsrefseg: interrupted\n")


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ModuleNotFoundError("No module named 'x'", name="x"), KeyError(1)]
)
def test_unexpected_errors_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(error, monkeypatch)
    with pytest.raises(type(error)):
        cli.run_command(["doctor"])


def test_debugging_only_shows_where(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("RSREFSEG_DEBUG", "1")
    ran = run_here(capsys, "infer", "scene.png", "a box", "--bundle", "none")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("rsrefseg: no bundle at 'none'")
