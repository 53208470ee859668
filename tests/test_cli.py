"""The command line: quick to answer, one JSON document when asked, exit codes that scripts can trust."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
from commands import ENTRY, assert_refused, run_alone, run_here
from engines import doctor
from engines.images import DEFAULT_MAX_PIXELS
from engines.progress import ProgressLine
from export_jobs import Shortcut
from exported import Exported
from small import SIZE

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "demo",
    "data synth",
    "data check",
    "data convert",
    "train",
    "eval",
    "merge",
    "convert",
    "export",
    "parity",
    "bench",
    "infer",
    "doctor",
)
HELP_SECONDS = 0.5
COLD_INFER_SECONDS = 2.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a user stands in: a bundle, the run it came from, its data and a picture, all under default names."""
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    monkeypatch.delenv("RSREFSEG_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported.bundle, "bundle")
    shutil.copytree(exported.run, "runs/001")
    shutil.copytree(exported.data, "boxes")
    next(Path("boxes/images/rrsisd/JPEGImages").iterdir()).rename("scene.jpg")
    shutil.copytree(exported.data, "boxes", dirs_exist_ok=True)
    return tmp_path


def best_seconds(tries: int, *arguments: str, folder: Path) -> float:
    """The fastest of several runs: how long it takes when nothing else holds the machine up."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        done = run_alone(*arguments, folder=folder)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    return min(times)


# Start


def test_help_comes_at_once(tmp_path: Path) -> None:
    assert best_seconds(5, "--help", folder=tmp_path) <= HELP_SECONDS


def test_infer_is_quick_from_a_cold_start(place: Path) -> None:
    assert best_seconds(3, "infer", "scene.jpg", "the red box", folder=place) <= COLD_INFER_SECONDS


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, cli; cli.run_command(sys.argv[1:]); "
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'cv2'} & set(sys.modules); assert not heavy, heavy"
    )
    for arguments in (["--help"], ["infer", "--help"], ["train", "--help"], ["--version"], ["train", "--oops"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_console_script_is_this_entry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["rsrefseg"].split(":")
    assert f"from {module} import {function}; {function}()" == ENTRY


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, *command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: rsrefseg {command}".rstrip())


def test_the_list_of_commands_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("", "data"):
        listed = run_here(capsys, *group.split(), "--help").out.partition("Commands:\n")[2]
        found = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
        wanted = {command.removeprefix(group).split()[0] for command in COMMANDS if command.startswith(group)}
        assert set(found) == wanted


@pytest.mark.parametrize("arguments", [[], ["data"]], ids=str)
def test_without_a_command_the_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shown = run_here(capsys, *arguments)
    assert shown == run_here(capsys, *arguments, "--help")
    assert len(shown.out.splitlines()) > 5


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, "--version").out == metadata.version("rsrefseg") + "\n"


def test_the_limit_in_the_help_is_the_readers_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"default: {DEFAULT_MAX_PIXELS}" in " ".join(run_here(capsys, "infer", "--help").out.split())


# What a command prints


JSON_COMMANDS = {
    "doctor": ["doctor"],
    "infer": ["infer", "scene.jpg", "the red box", "the blue box"],
    "parity": ["parity"],
    "eval": ["eval", "--data", "boxes", "--split", "val"],
    "eval a bundle": ["eval", "--data", "boxes", "--split", "val", "--backend", "onnxruntime"],
    "merge": ["merge"],
    "export": ["export", "--out", "another"],
    "bench": ["bench", "--rounds", "3", "--backends", "onnxruntime"],
    "data synth": ["data", "synth", "scenes", "--train", "1", "--val", "1", "--test", "0", "--size", "64"],
    "data check": ["data", "check", "boxes"],
    "data convert": ["data", "convert", "boxes", "boxes.jsonl"],
}


@pytest.mark.parametrize("name", JSON_COMMANDS)
def test_json_is_one_document_and_nothing_else(
    name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import bundle

    monkeypatch.setattr(bundle, "export_graph", Shortcut(place / "bundle"))
    ran = run_here(capsys, *JSON_COMMANDS[name], "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1

    def no_number(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(ran.out, parse_constant=no_number)
    assert isinstance(document, dict)
    assert document == json.loads(json.dumps(ran.result)), "the demo gets what scripts get"


def test_a_person_gets_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, "infer", "scene.jpg", "the red box", "a blue qqq")
    assert ran.code == 0
    assert '"the red box": ' in ran.out
    assert "note: " in ran.out
    assert "qqq" in ran.out
    assert str(Path("results/scene_overlay.png")) in ran.out
    assert "ran on onnxruntime" in ran.out
    checked = run_here(capsys, "data", "check", "boxes")
    assert "no faults" in checked.out
    converted = run_here(capsys, "data", "convert", "boxes", "boxes.jsonl")
    assert converted.out == "24 expressions written to boxes.jsonl\n"


def test_results_are_where_the_report_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder of one's own, one mask a phrase, whatever the phrases have in common."""
    phrases = ["the red box", "The Red Box!", "the blue box"]
    ran = run_here(capsys, "infer", "scene.jpg", *phrases, "--out", "my/results", "--json")
    files = [Path(file) for file in ran.result["files"]]
    assert len(set(files)) == len(phrases) + 2
    assert {file.parent for file in files} == {Path("my/results")}
    assert all(Image.open(file).size == SIZE[::-1] for file in files[: len(phrases)])
    written = json.loads(files[-1].read_text(encoding="utf-8"))
    assert [result["phrase"] for result in written["results"]] == phrases
    without_file = [{k: v for k, v in result.items() if k != "mask_file"} for result in written["results"]]
    assert ran.result["results"] == without_file


MARKED = "[red]x[/bold] :smile:"


def test_nothing_a_user_names_is_taken_for_markup(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scene.jpg").rename(f"{MARKED.replace('/', '')}.jpg")
    picture = f"{MARKED.replace('/', '')}.jpg"
    ran = run_here(capsys, "infer", picture, f"the red box {MARKED}")
    assert ran.code == 0, ran.err
    assert f'"the red box {MARKED}"' in ran.out
    assert picture.removesuffix(".jpg") in ran.out
    missing = run_here(capsys, "infer", f"{MARKED}.png", "the red box")
    assert_refused(missing, f"{MARKED}.png")
    run = Path("runs") / MARKED
    run.parent.mkdir()
    Path("runs/001").rename(run)
    merged = run_here(capsys, "merge", run)
    assert merged.code == 0, merged.err
    assert str(run) in merged.out


def test_a_table_in_a_file_is_not_cut(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal, there is no width to fit into."""
    run = Path("runs") / ("a run of a very long name " * 8)
    Path("runs/001").rename(run)
    merged = run_here(capsys, "merge", run)
    assert str(run) in merged.out
    assert "…" not in merged.out


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = run_here(capsys, "infer", tmp_path / "a\x1b[31m\x07\nb.png", "x", "--bundle", tmp_path / "\x9b2J")
    assert_refused(ran, r"\x9b2J")
    assert ran.err.isprintable() or set(ran.err) - {"\n"} == {mark for mark in ran.err if mark.isprintable()}


def test_names_and_phrases_of_any_bytes_are_printed(place: Path) -> None:
    """A Latin-1 file name and phrase, on a terminal that knows ASCII only."""
    name = os.fsencode("scene") + b"\xe9.jpg"
    Path("scene.jpg").rename(os.fsdecode(name))
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for extra in ((), ("--json",)):
        done = run_alone("infer", name, b"the red box \xe9\xf0", *extra, folder=place, environment=environment)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["results"][0]["phrase"].startswith("the red box")


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
        (["train", "--data", "x", "--epochs", "0"], "--epochs"),
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


def test_half_precision_is_not_pretended(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(run_here(capsys, "export", "--fp16"), "--fp16 is not in this release yet")


def test_commands_work_as_typed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No argument but those that say what is wanted: the latest run, ./bundle or $RSREFSEG_BUNDLE, ./results."""
    from export import bundle

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
        ({"tensorrt": "10.3"}, "10.3 is installed, but this release"),
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
