"""The command line: help, JSON output, text output, and defaults without options."""

import json
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer
from PIL import Image

from rsrefseg import cli
from rsrefseg.train.settings import resolve_settings
from tests.support import ROOT
from tests.support.commands import ENTRY, assert_refused, run_alone, run_here
from tests.support.export_jobs import Shortcut
from tests.support.places import Capsys
from tests.support.small import SIZE

COMMANDS = {
    "": {
        "demo", "data", "download", "train", "eval", "calibrate", "merge", "convert", "export", "push", "build",
        "parity", "bench", "infer", "doctor",
    },
    "data ": {"synth", "check", "convert"},
}  # fmt: skip
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
MARKED = "[red]x[bold] :smile:"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def quick_export(tmp_path_factory: pytest.TempPathFactory, demo_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy graphs from the existing bundle instead of exporting them."""
    from rsrefseg.export import export

    graphs = shutil.copytree(demo_place / "bundle", tmp_path_factory.mktemp("graphs") / "bundle")
    monkeypatch.setattr(export, "export_graph", Shortcut(graphs))


# Help


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rsrefseg import cli; cli.run_command(sys.argv[1:]); "
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'cv2', 'rasterio', 'msgspec'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"], ["train", "--oops"]):
        done = run_alone(*arguments, script=code)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", COMMANDS)
def test_help_lists_every_command_and_each_explains_itself(group: str, capsys: Capsys) -> None:
    shown = run_here(capsys, *group.split())
    assert shown == run_here(capsys, *group.split(), "--help")
    assert (
        set(re.findall(r"^  (\w+) ", shown.out.partition("Commands:\n")[2].partition("\n\n")[0], re.MULTILINE))
        == COMMANDS[group]
    )
    for command in COMMANDS[group] - {"data"}:
        ran = run_here(capsys, *group.split(), command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.split()[:2] == ["Usage:", "rsrefseg"]
        assert f"Example: rsrefseg {group}{command}" in ran.out


def test_the_defaults_that_help_shows_for_training_are_those_of_the_settings() -> None:
    adapted, scratch = (resolve_settings(None, given) for given in ({}, {"from_scratch": True}))
    command = typer.main.get_command(cli.app).commands["train"]  # type: ignore[attr-defined]
    shown = {parameter.name: parameter for parameter in command.params if isinstance(parameter.show_default, str)}
    assert len(shown) >= 15
    for name, parameter in shown.items():
        parts = (adapted.model.config(), adapted.data, adapted.training, adapted.training.lora)
        values = [next(getattr(part, name) for part in parts if hasattr(part, name))]
        if isinstance(values[0], bool):
            options = parameter.opts if values[0] else parameter.secondary_opts
            values = [options[0].removeprefix("--")]
        elif (other := getattr(scratch.training, name, values[0])) != values[0]:
            values.append(f"{other} from scratch")
        assert parameter.show_default == "; ".join(map(str, values)), name


def test_the_console_script_and_the_version_are_those_of_the_package(capsys: Capsys) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["rsrefseg"].split(":")
    assert f"from {module} import {function}; {function}()" == ENTRY
    assert run_here(capsys, "--version").out == metadata.version("rsrefseg") + "\n"


# What a command prints


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("name", JSON_COMMANDS)
def test_json_is_one_document_and_nothing_else(name: str, capsys: Capsys) -> None:
    ran = run_here(capsys, *JSON_COMMANDS[name], "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    document = json.loads(ran.out, parse_constant=pytest.fail)  # NaN is not JSON
    assert isinstance(document, dict)
    assert document == json.loads(json.dumps(ran.result)), "the demo gets what scripts get"


def test_a_person_gets_text(demo_place: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, "infer", "scene.jpg", "the red box", "a blue qqq")
    assert ran.code == 0
    for fact in ('"the red box": ', "note: ", "qqq", str(Path("results/scene_overlay.png")), "ran on onnxruntime"):
        assert fact in ran.out
    assert "no faults" in run_here(capsys, "data", "check", "boxes").out
    assert "24 expressions" in run_here(capsys, "data", "convert", "boxes", "boxes.jsonl").out


def test_results_are_at_the_reported_paths(demo_place: Path, capsys: Capsys) -> None:
    """``infer`` writes one mask per phrase, also for similar phrases."""
    phrases = ["the red box", "The Red Box!", "the blue box"]
    ran = run_here(capsys, "infer", "scene.jpg", *phrases, "--out", "my/results", "--json")
    files = [Path(file) for file in ran.result["files"]]
    assert len(set(files)) == len(phrases) + 2
    assert {file.parent for file in files} == {Path("my/results")}
    assert all(Image.open(file).size == SIZE[::-1] for file in files[: len(phrases)])
    written = json.loads(files[-1].read_text(encoding="utf-8"))
    assert [result["phrase"] for result in written["results"]] == phrases
    assert ran.result["results"] == written["results"]


def test_nothing_a_user_names_is_taken_for_markup_or_cut(demo_place: Path, capsys: Capsys) -> None:
    """Without a terminal, lines are not wrapped."""
    image = Path("scene.jpg").rename(f"{MARKED}.jpg")
    ran = run_here(capsys, "infer", image, f"the red box {MARKED}")
    assert ran.code == 0, ran.err
    assert f'"the red box {MARKED}"' in ran.out
    assert image.stem in ran.out
    assert_refused(run_here(capsys, "infer", f"{MARKED}.png", "the red box"), f"{MARKED}.png")
    run = Path("runs/001").rename(Path("runs") / (f"a run of a very long name {MARKED} " * 4))
    assert str(run) in run_here(capsys, "merge", run).out


def test_control_characters_never_reach_the_terminal(capsys: Capsys, tmp_path: Path) -> None:
    ran = run_here(capsys, "infer", tmp_path / "a\x1b[31m\x07\nb.png", "x", "--bundle", tmp_path / "\x9b2J")
    assert_refused(ran, r"\x9b2J")
    assert ran.err.removesuffix("\n").isprintable()


@pytest.mark.usefixtures("quick_export")
def test_commands_work_without_options(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults are the latest run, ./bundle or $RSREFSEG_BUNDLE, and ./results."""
    shutil.rmtree("bundle")
    for arguments in (["merge"], ["export"], ["infer", "scene.jpg", "the red box"]):
        assert run_here(capsys, *arguments).code == 0
    assert Path("results/scene.json").exists()
    Path("bundle").rename("elsewhere")
    assert_refused(run_here(capsys, "parity"), "no bundle at 'bundle'")
    monkeypatch.setenv("RSREFSEG_BUNDLE", "elsewhere")
    assert run_here(capsys, "parity").code == 0
