"""The example at the end of every command's help, run as it is printed."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperGroup

from rsrefseg import cli
from rsrefseg.runs.imported_run import rendered_scenes
from tests.rsrefseg.checkpoints.test_commands import CONFIG
from tests.support.commands import assert_refused_last, run_here
from tests.support.places import Capsys
from tests.support.upstream import PHRASES, PublicRSRefSeg
from tests.support.words import write_word_tokenizer

# In this order each command finds what the ones before it wrote. TensorRT has no engine without a GPU, and nothing is
# sent to or fetched from the real hub.
ORDER = (
    "data synth, data check, data convert, train, merge, calibrate, eval, export, parity, bench, infer, doctor, "
    "convert, demo"
)
WITHOUT_GPU = {"build": "tensorrt"}
OFFLINE = {"download": "check the network", "push": "check the network"}


def examples(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each command and the arguments of its example."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from examples(command, f"{prefix}{name} ")
        else:
            found = re.fullmatch(r"Example: rsrefseg (.+)", command.epilog or "")
            assert found is not None, f"{prefix}{name} has no example"
            yield prefix + name, shlex.split(found[1])


def test_every_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    app = typer.main.get_command(cli.app)
    assert isinstance(app, TyperGroup)
    by_command = dict(examples(app))
    order = ORDER.split(", ")
    assert by_command.keys() == {*order, *WITHOUT_GPU, *OFFLINE}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for command in order:
        if command == "infer":
            shutil.copyfile(next((tmp_path / "scenes").rglob("*.jpg")), "img.png")
        if command == "convert":
            torch.save(PublicRSRefSeg(CONFIG).state_dict(), "model.pth")
            phrases = [referral.phrase for scene in rendered_scenes() for referral in scene.referrals]
            write_word_tokenizer(tmp_path / "tokenizer.json", [*PHRASES, *phrases], CONFIG.siglip.vocab_size)
        with monkeypatch.context() as patch:
            if command == "convert":  # a small model: a published one has gigabytes
                patch.setattr("rsrefseg.model.config.model_config", lambda preset: CONFIG)
            ran = run_here(capsys, *by_command[command])
        assert ran.code == 0, f"{command}: {ran.err}"
    for command, reason in OFFLINE.items():
        assert_refused_last(run_here(capsys, *by_command[command]), reason)
    for command, missing in WITHOUT_GPU.items():
        ran = run_here(capsys, *by_command[command])
        assert ran.code in (0, 2)
        assert ran.code == 0 or missing in ran.err.lower()
