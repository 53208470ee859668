"""``rsrefseg demo``: the whole job, as the very commands a user would type, one after the other."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group

from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table

# Domain B, which the shipped base has not seen, from a seed it was not made with.
DOMAIN, SEED, SPLIT = "B", 7, "test"
_TRAINING = "--preset tiny --batch-size 4 --phrases-per-image 6 --learning-rate 0.0007 --warmup-epochs 0.1"
# In domain A, as the scenes that the shipped base was trained on.
_FIRST_SCENES = "--train 0 --val 0 --test 4 --seed 5 --overwrite"
_PHRASES_PER_IMAGE = 3
FIRST_MASK = "first_mask"

# Runs a command in this process: its exit code, and the document it reports (what it prints with --json).
RunCommand = Callable[[Sequence[str]], tuple[int, Any]]


class Scale(NamedTuple):
    """How much is made, trained and measured: images of each split, epochs, rounds of the bench, images segmented."""

    train: int
    val: int
    test: int
    epochs: int
    rounds: int
    images: int


FULL = Scale(train=800, val=24, test=80, epochs=1, rounds=10, images=3)
QUICK = Scale(train=120, val=4, test=8, epochs=1, rounds=3, images=1)


class DemoStoppedError(RSRefSegError):
    """A command of the demo failed; ``exit_code`` is that command's."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(f"the demo stopped at `{command}` (exit code {exit_code}): see its message above")
        self.exit_code = exit_code


class DemoReport(Record, frozen=True):
    """The figures of the whole job; scores are fractions in [0, 1].

    Attributes:
        test_samples: expressions that were scored; no test image is among the training images, by digest.
        base_giou: of the shipped base on the new domain.
        adapted_giou: after LoRA.
        phrase_blind_giou: of the same model with the phrases of other objects in the same images.
        parity_holds: whether the exported graphs agree with PyTorch.
        giou_difference: exported graphs minus PyTorch, on the test split.
        backend: what runs the bundle here.
        first_phrase_ms, next_phrase_ms: median latency of the bundle.
        speedup: PyTorch's latency of a first phrase over the bundle's; None if PyTorch was not measured.
        first_mask_s: time from the start to the first mask, which the shipped base draws before any training.
        seconds: of each command.
        seconds_in_all: of all.
        run: folder of the trained run.
        bundle: folder of the bundle.
        overlays: images with the masks of the adapted model drawn on them.
        next_commands: what to try now.
    """

    test_samples: int
    base_giou: float
    adapted_giou: float
    phrase_blind_giou: float
    parity_holds: bool
    giou_difference: float
    backend: str
    first_phrase_ms: float
    next_phrase_ms: float
    speedup: float | None
    first_mask_s: float
    seconds: dict[str, float]
    seconds_in_all: float
    run: str
    bundle: str
    overlays: tuple[str, ...]
    next_commands: tuple[str, ...]

    def render(self) -> Group:
        """Two tables and some lines, for a terminal."""
        scores = Table(f"gIoU on {self.test_samples} test expressions of the new domain", ("model", "gIoU"))
        scores.add("shipped base", f"{self.base_giou:.4f}")
        scores.add("adapted by LoRA", f"{self.adapted_giou:.4f}")
        scores.add("the same, with phrases of other objects in the image", f"{self.phrase_blind_giou:.4f}")
        steps = Table(f"{self.seconds_in_all:.0f} s in all", ("step", "s"))
        for name, seconds in self.seconds.items():
            steps.add(name, f"{seconds:.1f}")
        parity = "holds" if self.parity_holds else "does not hold"
        faster = f", {self.speedup:.1f} times as fast as PyTorch" if self.speedup is not None else ""
        lines = [
            f"first mask after {self.first_mask_s:.0f} s",
            f"parity {parity}: gIoU of the exported graphs {self.giou_difference:+.6f} from PyTorch's",
            f"{self.backend}: first phrase {self.first_phrase_ms:.0f} ms{faster}",
            f"{self.backend}: next phrase {self.next_phrase_ms:.0f} ms",
            f"run      {self.run}",
            f"bundle   {self.bundle}",
            *(f"overlay  {overlay}" for overlay in self.overlays),
            "",
            "try:",
            *(f"  {command}" for command in self.next_commands),
        ]
        return Group(steps.to_rich(), scores.to_rich(), "\n".join(lines))


def run_demo(out: Path, quick: bool, run_command: RunCommand) -> DemoReport:
    """Run all commands, each printed as it would be typed.

    What the commands print goes to standard error: standard output holds the demo's own report only.

    Args:
        out: folder for scenes and results; run and bundle go where these commands always put them.
        quick: a small run that only shows that the commands work; its scores mean nothing.
        run_command: runs one.

    Raises:
        DemoStoppedError: a command failed; none after it was run.
    """
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, arguments in demo_steps(out, QUICK if quick else FULL):
        command = shlex.join(["rsrefseg", *arguments])
        print(f"\n$ {command}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            exit_code, results[name] = run_command(arguments)
        seconds[name] = time.perf_counter() - start
        if exit_code != 0:
            raise DemoStoppedError(command, exit_code)
    return demo_report(results, seconds)


def demo_steps(out: Path, scale: Scale) -> Iterator[tuple[str, list[str]]]:
    """Yield name and arguments of each command, in order. Images come from earlier commands, so run them on the way."""
    first, scenes = out / "first", str(out / "scenes")
    yield "first_scenes", ["data", "synth", str(first), *_FIRST_SCENES.split()]
    yield "export_base", ["export", "--base"]
    yield FIRST_MASK, _infer(*_images(first, 1)[0], out)
    on_test = ["--data", scenes, "--split", SPLIT]
    counts = (
        f"--train {scale.train} --val {scale.val} --test {scale.test} --seed {SEED} --workers {os.cpu_count() or 1}"
    )
    yield "scenes", ["data", "synth", scenes, "--domain", DOMAIN, *counts.split(), "--overwrite"]
    yield "check", ["data", "check", scenes]
    yield "base", ["eval", *on_test, "--base"]
    yield "train", ["train", "--data", scenes, "--epochs", str(scale.epochs), *_TRAINING.split()]
    yield "adapted", ["eval", *on_test]
    yield "phrase_blind", ["eval", *on_test, "--shuffle-phrases"]
    yield "merge", ["merge"]
    yield "export", ["export"]
    yield "parity", ["parity", *on_test]
    yield "bench", ["bench", "--rounds", str(scale.rounds)]
    for number, (image, phrases) in enumerate(_images(out / "scenes", scale.images), start=1):
        yield f"infer_{number}", _infer(image, phrases, out)


def _infer(image: Path, phrases: Sequence[str], out: Path) -> list[str]:
    return ["infer", str(image), *phrases, "--out", str(out / "results")]


def demo_report(results: Mapping[str, Any], seconds: Mapping[str, float]) -> DemoReport:
    """Collect what each command reported."""
    infers = [result for name, result in results.items() if name.startswith("infer_")]
    before_first_mask = list(seconds)[: list(seconds).index(FIRST_MASK) + 1]
    parity, bench = results["parity"], results["bench"]
    backend = next(runner["name"] for runner in bench["runners"] if runner["name"] != "torch")
    first, following = (_measurement(bench, backend, name) for name in ("first_phrase", "next_phrase"))
    tries = [["infer", infer["image"], infer["results"][0]["phrase"]] for infer in infers[:1] if infer["results"]]
    tries += [["bench"], ["doctor"], ["train", "--data", "YOUR_DATA"], ["--help"]]
    return DemoReport(
        test_samples=results["adapted"]["samples"],
        base_giou=results["base"]["gIoU"],
        adapted_giou=results["adapted"]["gIoU"],
        phrase_blind_giou=results["phrase_blind"]["gIoU"],
        parity_holds=parity["holds"],
        giou_difference=parity["data"]["gIoU_difference"],
        backend=backend,
        first_phrase_ms=first["p50_ms"],
        next_phrase_ms=following["p50_ms"],
        speedup=first["ratio"]["median"] if first["ratio"] else None,
        first_mask_s=sum(seconds[name] for name in before_first_mask),
        seconds=dict(seconds),
        seconds_in_all=sum(seconds.values()),
        run=results["train"]["run"],
        bundle=results["export"]["bundle"],
        overlays=tuple(file for infer in infers for file in infer["files"] if file.endswith("_overlay.png")),
        next_commands=tuple(shlex.join(["rsrefseg", *arguments]) for arguments in tries),
    )


def _measurement(bench: Mapping[str, Any], backend: str, scenario: str) -> dict[str, Any]:
    """A whole scenario, from the report of ``rsrefseg bench``."""
    key = (backend, scenario, "total")
    return next(one for one in bench["measurements"] if (one["runner"], one["scenario"], one["span"]) == key)


def _images(scenes: Path, count: int) -> list[tuple[Path, list[str]]]:
    """The test images that show most classes, each with a phrase for some of them."""
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.samples import group_by_image

    groups = group_by_image(open_dataset(scenes).split(SPLIT))
    by_class = [{sample.category: sample for sample in reversed(group)} for group in groups]
    richest = sorted(by_class, key=len, reverse=True)[:count]
    chosen = [list(classes.values())[:_PHRASES_PER_IMAGE] for classes in richest]
    return [(samples[0].image_path, [sample.phrase for sample in samples]) for samples in chosen]
