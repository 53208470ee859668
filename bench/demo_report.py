"""What the demo came to."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .latency.scenarios import FIRST_PHRASE, NEXT_PHRASE, TOTAL
from .latency.torch_runners import TORCH


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The figures of the whole job; scores are fractions in [0, 1].

    Attributes:
        test_samples: expressions the scores rest on; no test image is among the training images, by digest.
        base_giou: of the shipped base on the new domain.
        adapted_giou: after LoRA.
        phrase_blind_giou: of the same model asked with other phrases of the same images.
        parity_holds: whether the exported graphs answer as PyTorch does.
        giou_difference: exported graphs minus PyTorch, on the test split.
        backend: what runs the bundle here.
        first_phrase_ms, next_phrase_ms: median latency of the bundle.
        speedup: how many times faster than PyTorch a first phrase is, ``None`` where that was not measured.
        seconds: of each command.
        run: folder of the trained run.
        bundle: folder of the bundle.
        pictures: overlays to look at.
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
    seconds: Mapping[str, float]
    run: str
    bundle: str
    pictures: tuple[str, ...]
    next_commands: tuple[str, ...]

    @classmethod
    def of(cls, results: Mapping[str, Any], seconds: Mapping[str, float]) -> "DemoReport":
        """Collect what each command reported."""
        infers = [result for name, result in results.items() if name.startswith("infer")]
        parity, bench = results["parity"], results["bench"]
        backend = next(runner["name"] for runner in bench["runners"] if runner["name"] != TORCH)
        first, following = (_measurement(bench, backend, one.name) for one in (FIRST_PHRASE, NEXT_PHRASE))
        return cls(
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
            seconds=dict(seconds),
            run=results["train"]["run"],
            bundle=results["export"]["bundle"],
            pictures=tuple(file for infer in infers for file in infer["files"] if file.endswith("_overlay.png")),
            next_commands=_next_commands(infers),
        )

    @property
    def seconds_in_all(self) -> float:
        """Of all commands."""
        return sum(self.seconds.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"seconds_in_all": self.seconds_in_all}

    def render(self) -> Any:
        """A table and some lines for a person."""
        from rich.console import Group

        from rsrefseg.engines.system.tables import plain_table

        scores = plain_table(f"gIoU on {self.test_samples} test expressions of the new domain", ("model",), ("gIoU",))
        scores.add_row("shipped base", f"{self.base_giou:.4f}")
        scores.add_row("adapted by LoRA", f"{self.adapted_giou:.4f}")
        scores.add_row("the same, asked with other phrases of the image", f"{self.phrase_blind_giou:.4f}")
        steps = plain_table(f"{self.seconds_in_all:.0f} s in all", ("step",), ("s",))
        for name, took in self.seconds.items():
            steps.add_row(name, f"{took:.1f}")
        parity = "holds" if self.parity_holds else "does not hold"
        faster = f", {self.speedup:.1f} times as fast as PyTorch" if self.speedup is not None else ""
        lines = [
            f"parity {parity}: gIoU of the exported graphs {self.giou_difference:+.6f} from PyTorch's",
            f"{self.backend}: first phrase {self.first_phrase_ms:.0f} ms{faster}",
            f"{self.backend}: next phrase {self.next_phrase_ms:.0f} ms",
            f"run      {self.run}",
            f"bundle   {self.bundle}",
            *(f"picture  {picture}" for picture in self.pictures),
            "",
            "try:",
            *(f"  {command}" for command in self.next_commands),
        ]
        return Group(steps, scores, "\n".join(lines))


def _measurement(bench: dict[str, Any], runner: str, scenario: str) -> dict[str, Any]:
    """A whole scenario on a runner."""
    key = (runner, scenario, TOTAL)
    return next(one for one in bench["measurements"] if (one["runner"], one["scenario"], one["span"]) == key)


def _next_commands(infers: list[dict[str, Any]]) -> tuple[str, ...]:
    asked = [
        shlex.join(["rsrefseg", "infer", infer["image"], infer["results"][0]["phrase"]])
        for infer in infers[:1]
        if infer["results"]
    ]
    return (*asked, "rsrefseg bench", "rsrefseg doctor", "rsrefseg train --data YOUR_DATA", "rsrefseg --help")
