"""The demo runs existing commands in the right order and stops at the first failure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.core import TyperCommand

from rsrefseg import cli
from rsrefseg.bench.demo import FULL, QUICK, DemoStoppedError, Scale, demo_steps, run_demo
from rsrefseg.data.formats import open_dataset
from rsrefseg.synth import Domain, synthesize
from tests.support.printing import printed

FIRST_MASK = ["data synth", "export", "infer"]
ADAPTATION = ["data synth", "data check", "eval", "train", "eval", "eval", "merge", "export", "parity", "bench"]
STEPS = [*FIRST_MASK, *ADAPTATION, "infer"]
DOCUMENTS: dict[str, Any] = {
    "data": {},
    "train": {"run": "runs/003"},
    "merge": {},
    "export": {"bundle": "bundle"},
    "parity": {"holds": True, "data": {"gIoU_difference": -0.0001}},
    "bench": {
        "runners": [{"name": "torch"}, {"name": "onnxruntime"}],
        "measurements": [
            {"runner": name, "scenario": scenario, "span": span, "p50_ms": ms, "ratio": ratio}
            for name, ms, ratio in (("torch", 90.0, None), ("onnxruntime", 30.0, {"median": 3.0}))
            for scenario, span in (("first_phrase", "sam_encoder"), ("first_phrase", "total"), ("next_phrase", "total"))
        ],
    },
    "infer": {
        "image": "1.jpg",
        "results": [{"phrase": "the box"}],
        "files": ["results/1_the_overlay_mask.png", "results/1_overlay.png", "results/1.json"],
    },
}


class Runner:
    """Double of the command line: renders scenes, invents other results, and can fail at a command."""

    def __init__(self, fails_at: str = "", code: int = 0) -> None:
        self.names: list[str] = []
        self.fails_at, self.code = fails_at, code

    def __call__(self, arguments: Sequence[str]) -> tuple[int, Any]:
        command = arguments[0]
        self.names.append(" ".join(arguments[:2]) if command == "data" else command)
        print("what the command prints")
        if command == self.fails_at:
            return self.code, None
        if command == "eval":
            score = 0.3 if "--base" in arguments else 0.1 if "--shuffle-phrases" in arguments else 0.7
            return 0, {"gIoU": score, "samples": 400}
        if self.names[-1] == "data synth":
            made_scenes(Path(arguments[2]))
        return 0, DOCUMENTS[command]


def made_scenes(folder: Path) -> None:
    synthesize(folder, domain=Domain.B, train=0, val=0, test=3, size=96, seed=7)


def test_the_whole_job_in_order_and_what_it_came_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner()
    report = run_demo(tmp_path, True, runner)
    assert runner.names == STEPS
    assert (report.base_giou, report.adapted_giou, report.phrase_blind_giou) == (0.3, 0.7, 0.1)
    assert (report.test_samples, report.parity_holds, report.giou_difference) == (400, True, -0.0001)
    assert (report.backend, report.first_phrase_ms, report.speedup) == ("onnxruntime", 30.0, 3.0)
    assert (report.run, report.bundle, report.overlays) == ("runs/003", "bundle", ("results/1_overlay.png",))
    assert len(report.seconds) == len(STEPS)
    assert report.first_mask_s == pytest.approx(sum(list(report.seconds.values())[: len(FIRST_MASK)]))
    assert report.seconds_in_all == pytest.approx(sum(report.seconds.values()))
    out, err = capsys.readouterr()
    assert out == ""  # kept for the demo's own report, so that --json is one document
    assert err.count("what the command prints") == len(STEPS)
    shown = [line.split()[2] for line in err.splitlines() if line.startswith("$ rsrefseg ")]
    assert shown == [step.split()[0] for step in STEPS]
    assert json.loads(json.dumps(report.to_dict()))["seconds_in_all"] >= 0
    text = printed(report)
    for fact in ("0.3000", "0.7000", "0.1000", "parity holds", "30 ms, 3.0 times as fast", "runs/003", "1_overlay.png"):
        assert fact in text


@pytest.mark.parametrize(("command", "code"), [("train", 2), ("parity", 1), ("data", 130)])
def test_a_failing_command_stops_the_demo_with_its_exit_code(tmp_path: Path, command: str, code: int) -> None:
    runner = Runner(command, code)
    with pytest.raises(DemoStoppedError, match=f"rsrefseg {command}") as caught:
        run_demo(tmp_path, True, runner)
    assert caught.value.exit_code == code
    assert runner.names[-1].startswith(command)
    assert len(runner.names) == [name.split()[0] for name in STEPS].index(command) + 1


@pytest.mark.parametrize("scale", [FULL, QUICK])
def test_commands_parse_and_phrases_fit_images(tmp_path: Path, scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    phrases: dict[str, set[str]] = {}
    for folder in ("first", "scenes"):
        made_scenes(tmp_path / folder)
        for sample in open_dataset(tmp_path / folder).samples:
            phrases.setdefault(str(sample.image_path), set()).add(sample.phrase)
    steps = list(demo_steps(tmp_path, scale))
    monkeypatch.setattr(TyperCommand, "invoke", Mock())  # arguments are taken apart, nothing is run
    for _, arguments in steps:
        assert cli.run_command(arguments)[0] == 0
    assert len({name for name, _ in steps}) == len(steps)
    asked = [arguments for _, arguments in steps if arguments[0] == "infer"]
    assert len({image for _, image, *_ in asked}) == 1 + scale.images
    for _, image, *rest in asked:
        wanted = rest[: rest.index("--out")]
        assert wanted
        assert set(wanted) <= phrases[image]


def test_without_torch_times_there_is_no_speedup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurements = [row | {"ratio": None} for row in DOCUMENTS["bench"]["measurements"] if row["runner"] != "torch"]
    monkeypatch.setitem(DOCUMENTS, "bench", {"runners": [{"name": "onnxruntime"}], "measurements": measurements})
    report = run_demo(tmp_path, True, Runner())
    assert report.speedup is None
    assert "times as fast" not in printed(report)
