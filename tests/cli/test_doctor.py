"""``rsrefseg doctor``, and the progress lines of commands."""

import io
import re
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest

from rsrefseg.engines import doctor
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import AttentionRecord
from rsrefseg.engines.system.progress import ProgressLine
from tests.support.commands import run_here
from tests.support.made_bundle import change_stage, make_bundle
from tests.support.places import Capsys

CPU, TRAINING = "infer, parity and bench on the CPU (onnxruntime)", "train, merge and export (torch)"
MARKED = "[red]x[/bold] :smile:"


def abilities() -> dict[str, tuple[bool, str]]:
    return {ability.name: (ability.works, ability.detail) for ability in doctor.examine().abilities}


def test_doctor_knows_this_machine(capsys: Capsys) -> None:
    found = abilities()
    assert found[CPU][0] is found[TRAINING][0] is True
    assert f"torch {metadata.version('torch')}" in found[TRAINING][1]
    text = run_here(capsys, "doctor").out
    assert [line[:3] for line in text.splitlines()[1:]] == ["yes" if works else "no " for works, _ in found.values()]


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "peft" else found(name))
    assert abilities()[TRAINING] == (False, "peft missing: `pip install 'rsrefseg[train]'`")
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1")
    works, detail = abilities()[CPU]
    assert not works
    assert "onnxruntime and onnxruntime-gpu are both installed" in detail


def test_doctor_never_contradicts_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in (CPU, "infer, parity and bench on an NVIDIA GPU (onnxruntime-cuda)"):
        works, detail = abilities()[name]
        assert not works
        assert "onnxruntime is not installed: pip install 'rsrefseg[c" in detail


def test_doctor_says_whether_the_bundle_suits_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a GPU, that is one for ONNX Runtime."""
    folder = tmp_path / "bundle"
    monkeypatch.setenv("RSREFSEG_BUNDLE", str(folder))
    missing = abilities()
    make_bundle(folder)
    *others, (works, detail) = abilities().values()
    assert others == list(missing.values())
    assert works
    assert str(folder) in detail
    change_stage(folder, Stage.SAM_ENCODER, attention=AttentionRecord("additive", "padded", 1, "tensorrt", "by hand"))
    *_, (works, detail) = abilities().values()
    assert not works
    assert "exported for tensorrt" in detail
    assert "--target onnxruntime" in detail


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Replace standard error by a terminal. Not a fixture, because pytest resets the stream before the test."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return stream


def test_progress_on_a_terminal_is_a_bar_with_the_title_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        with ProgressLine(f"exporting {MARKED}") as progress:
            progress.update(1, 4, "loss [b]0.5")
            progress.say(f"epoch 1 {MARKED}")
            raise ValueError("stop")

    terminal, before = on_terminal(monkeypatch), sys.stdout
    with pytest.raises(ValueError, match="stop"):
        work()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    for text in (f"exporting {MARKED}  loss [b]0.5", f"epoch 1 {MARKED}", "1/4"):
        assert text in plain
    assert sys.stdout is before
    assert terminal.getvalue().count("\x1b[?25h") == 1, "the cursor is shown again"


def test_a_bar_that_is_not_live_draws_when_updated_and_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that redraws ten times a second would disturb measurements."""
    terminal = on_terminal(monkeypatch)
    before = set(threading.enumerate())
    with ProgressLine("measuring", live=False) as progress:
        assert set(threading.enumerate()) == before
        progress.update(1, 4)
        assert "1/4" in terminal.getvalue()
        progress.say("torch settled")
        assert "torch settled" in terminal.getvalue()
    with ProgressLine("loading"):
        assert len(set(threading.enumerate()) - before) == 1


def test_progress_elsewhere_is_plain_lines(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with ProgressLine("checking") as progress:
        for done in range(1, 8):
            progress.update(done, 7)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["checking  3/7", "checking  6/7", "checking  7/7"]
