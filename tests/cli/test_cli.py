"""The command line: quick to answer, one JSON document when asked, text for a person otherwise."""

import json
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.commands import ENTRY, assert_refused, run_alone, run_here
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.places import beside_run
from tests.support.small import SIZE

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
    "build",
    "parity",
    "bench",
    "infer",
    "doctor",
)
pytestmark = pytest.mark.usefixtures("one_thread")
HELP_SECONDS = 0.5
COLD_INFER_SECONDS = 2.0


@pytest.fixture
def place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return beside_run(exported, tmp_path, monkeypatch)


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
        "import sys; from rsrefseg import cli; cli.run_command(sys.argv[1:]); "
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'cv2', 'msgspec'} & set(sys.modules); assert not heavy, heavy"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"], ["train", "--oops"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_console_script_is_this_entry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["rsrefseg"].split(":")
    assert f"from {module} import {function}; {function}()" == ENTRY


def test_help_lists_every_command_and_each_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("", "data"):
        shown = run_here(capsys, *group.split())
        assert shown == run_here(capsys, *group.split(), "--help")
        listed = set(re.findall(r"^  (\w+) ", shown.out.partition("Commands:\n")[2], re.MULTILINE))
        assert listed == {command.removeprefix(group).split()[0] for command in COMMANDS if command.startswith(group)}
    for command in COMMANDS:
        ran = run_here(capsys, *command.split(), "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"Usage: rsrefseg {command}")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, "--version").out == metadata.version("rsrefseg") + "\n"


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
    from rsrefseg.export import export as bundle

    monkeypatch.setattr(bundle, "export_graph", Shortcut(place / "bundle"))
    ran = run_here(capsys, *JSON_COMMANDS[name], "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1

    document = json.loads(ran.out, parse_constant=pytest.fail)  # NaN is not JSON
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
    assert ran.result["results"] == written["results"]


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
