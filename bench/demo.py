"""``rsrefseg demo``: the whole job, as the very commands a user would type, one after the other."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import RSRefSegError

from .demo_report import DemoReport

# What the demo trains on and how: domain B, which the shipped base has never seen, from a seed it was not made with.
DOMAIN, SEED = "B", 7
SPLIT = "test"
BATCH_SIZE = 8
PHRASES_PER_IMAGE = 6
LEARNING_RATE = 7e-4
WARMUP_EPOCHS = 0.2
PHRASES_PER_PICTURE = 3

# Runs a command in this process: its exit code, and the document it reports (what it prints with --json).
RunCommand = Callable[[Sequence[str]], tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is made, trained and measured.

    Attributes:
        train, val, test: made images of each split.
        epochs: of LoRA training.
        rounds: of the latency measurement.
        pictures: segmented at the end.
    """

    train: int
    val: int
    test: int
    epochs: int
    rounds: int
    pictures: int


FULL = Scale(train=1200, val=24, test=80, epochs=2, rounds=10, pictures=3)
QUICK = Scale(train=120, val=4, test=8, epochs=1, rounds=3, pictures=1)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the demo: its name in the report, and its arguments."""

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(["rsrefseg", *self.arguments])


class DemoStoppedError(RSRefSegError):
    """A command of the demo failed, with that command's exit code; what was wrong it has said itself."""

    def __init__(self, step: Step, exit_code: int) -> None:
        super().__init__(f"the demo stopped at `{step}` (exit code {exit_code}): what was wrong stands above")
        self.exit_code = exit_code


def run_demo(out: Path, quick: bool, run_command: RunCommand) -> DemoReport:
    """Run all commands, each shown as it would be typed.

    What the commands print goes to standard error: standard output holds the demo's own report and nothing else.

    Args:
        out: folder for scenes and pictures; run and bundle go where these commands always put them.
        quick: a tenth of the work.
        run_command: runs one.

    Raises:
        DemoStoppedError: a command failed; none after it was run.
    """
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for step in demo_steps(out, QUICK if quick else FULL):
        print(f"\n$ {step}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            exit_code, results[step.name] = run_command(step.arguments)
        seconds[step.name] = time.perf_counter() - start
        if exit_code != 0:
            raise DemoStoppedError(step, exit_code)
    return DemoReport.of(results, seconds)


def demo_steps(out: Path, scale: Scale) -> Iterator[Step]:
    """The commands in order. The last ones name made pictures, so they are only known once the scenes are there."""
    scenes = str(out / "scenes")
    on_scenes = ("--data", scenes)
    on_test = (*on_scenes, "--split", SPLIT)
    yield Step("scenes", ("data", "synth", scenes, *_synth_options(scale)))
    yield Step("check", ("data", "check", scenes))
    yield Step("base", ("eval", *on_test, "--base"))
    yield Step("train", ("train", *on_scenes, *_train_options(scale)))
    yield Step("adapted", ("eval", *on_test))
    yield Step("phrase_blind", ("eval", *on_test, "--shuffle-phrases"))
    yield Step("merge", ("merge",))
    yield Step("export", ("export",))
    yield Step("parity", ("parity", *on_test))
    yield Step("bench", ("bench", "--rounds", str(scale.rounds)))
    for number, (image, phrases) in enumerate(_pictures(out / "scenes", scale.pictures), start=1):
        yield Step(f"infer_{number}", ("infer", str(image), *phrases, "--out", str(out / "results")))


def _synth_options(scale: Scale) -> tuple[str, ...]:
    counts = {"--train": scale.train, "--val": scale.val, "--test": scale.test}
    counts |= {"--seed": SEED, "--workers": os.cpu_count() or 1}
    return ("--domain", DOMAIN, *_options(counts), "--overwrite")


def _train_options(scale: Scale) -> tuple[str, ...]:
    settings = {
        "--preset": "tiny",
        "--epochs": scale.epochs,
        "--batch-size": BATCH_SIZE,
        "--phrases-per-image": PHRASES_PER_IMAGE,
        "--learning-rate": LEARNING_RATE,
        "--warmup-epochs": WARMUP_EPOCHS,
    }
    return _options(settings)


def _options(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(part) for pair in values.items() for part in pair)


def _pictures(scenes: Path, count: int) -> list[tuple[Path, list[str]]]:
    """The test pictures that show most classes, each with a phrase for some of them."""
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.samples import group_by_image

    groups = group_by_image(open_dataset(scenes).split(SPLIT))
    by_class = [{sample.category: sample for sample in reversed(group)} for group in groups]
    richest = sorted(by_class, key=len, reverse=True)[:count]
    return [
        (
            next(iter(classes.values())).image_path,
            [sample.phrase for sample in list(classes.values())[:PHRASES_PER_PICTURE]],
        )
        for classes in richest
    ]
