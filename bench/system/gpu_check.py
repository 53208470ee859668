"""``make gpu-check``: what only a machine with a GPU can show, in one go, kept as one JSON file.

Every step is a ``rsrefseg`` command in a process of its own: a backend that crashes does not take the others along.
Exit codes: 0 all that could run holds, 1 something does not, 2 no backend runs on a GPU here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsrefseg.engines.backends import Backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import MissingPartError, RSRefSegError
from rsrefseg.engines.system.files import atomic_write_json

from .gpu_report import CheckReport, Model, Outcome, Step, this_gpu
from .machine import this_machine

GPU_BACKENDS = (Backend.ONNXRUNTIME_CUDA, Backend.TENSORRT)
_COMMAND = (sys.executable, "-P", "-c", "from rsrefseg.cli import main; main()")
_STEP_LIMIT_S = 3600
_RUNS = Path("runs")
_RANDOM = "random"
_TORCH_CONTENDERS = ("torch-cuda", "torch-compile-cuda")
_TORCH_ABILITY = "train on an NVIDIA GPU"  # as the doctor calls it
# The forms of attention that ONNX Runtime on CUDA is fastest with too, in an opset that TensorRT reads.
_FOR_A_GPU = ("--target", "tensorrt")


class GpuCheck:
    """Runs all steps and keeps the report on disk as it grows.

    Args:
        preset: of the random models.
        out: the report.
        work: folder for bundles.
        allow_cpu: go on where no backend runs on a GPU.
        rounds: of the bench.
        program: what runs a ``rsrefseg`` command.
    """

    def __init__(
        self, preset: str, out: Path, work: Path, allow_cpu: bool, rounds: int, program: Sequence[str] = _COMMAND
    ) -> None:
        self._out, self._work, self._allow_cpu, self._rounds = out, work, allow_cpu, rounds
        self._program = program
        date = datetime.now(UTC).isoformat(timespec="seconds")
        self.report = CheckReport(date, False, this_gpu(), this_machine(), preset)

    def run(self) -> CheckReport:
        """Do everything.

        Raises:
            MissingPartError: no backend runs on a GPU here.
            RSRefSegError: the report cannot be written.
        """
        missing = self._missing_backends()
        for model, bundle in self._bundles():
            agreeing = []
            for backend in (Backend.ONNXRUNTIME, *GPU_BACKENDS):
                if backend in missing:
                    self._skip("parity", model, backend, missing[backend])
                elif backend is Backend.TENSORRT and not self._step("build", model, backend, "--bundle", bundle):
                    self._skip("parity", model, backend, "its engines could not be built")
                elif self._step("parity", model, backend, "--bundle", bundle, "--backend", backend):
                    agreeing.append(backend)
            self._bench(model, bundle, [backend for backend in agreeing if backend in GPU_BACKENDS] or agreeing)
        self._keep(replace(self.report, complete=True))
        return self.report

    def _missing_backends(self) -> dict[Backend, str]:
        """The backends that cannot run here, and why, by the doctor's own words."""
        self._step("doctor", "", "")
        abilities = self._abilities()
        missing = {
            backend: ability["detail"]
            for backend in (Backend.ONNXRUNTIME, *GPU_BACKENDS)
            for ability in abilities
            if ability["name"].endswith(f"({backend})") and not ability["works"]
        }
        if not self._allow_cpu and (not abilities or all(backend in missing for backend in GPU_BACKENDS)):
            reasons = "; ".join(f"{backend}: {missing.get(backend, 'unknown')}" for backend in GPU_BACKENDS)
            raise MissingPartError(f"no backend runs on a GPU here ({reasons}); --allow-cpu checks the CPU alone")
        return missing

    def _abilities(self) -> list[dict[str, Any]]:
        """What the doctor said, which is the first step."""
        return list((self.report.steps[0].report or {}).get("abilities", []))

    def _works(self, name: str) -> bool:
        return any(ability["name"] == name and ability["works"] for ability in self._abilities())

    def _bundles(self) -> list[tuple[str, Path]]:
        """Export every model that there is in both precisions; a model whose export fails is left out, and told."""
        run = self._work / "run"
        name = f"{_RANDOM} {self.report.preset}"
        made = self._exported(name, [], str(run), "--random-weights", self.report.preset)
        made = self._exported(name, made, str(run), "--fp16") if made else made
        if any(_RUNS.glob("*/run.json")):
            made = self._exported("latest run", made)
            return self._exported("latest run", made, "--fp16")
        self._skip("export", "latest run", "", "there is no run under ./runs: `make demo` makes one")
        return made

    def _exported(self, name: str, made: list[tuple[str, Path]], *arguments: str) -> list[tuple[str, Path]]:
        precision = "fp16" if "--fp16" in arguments else "fp32"
        model, folder = f"{name} {precision}", self._work / f"bundle{len(made)}"
        if not self._step("export", model, "", *arguments, *_FOR_A_GPU, "--out", folder):
            return made
        bundle = Bundle.open(folder)
        provenance = bundle.manifest.provenance
        precisions = {bundle.manifest.stages[stage].precision for stage in Stage}
        record = Model(
            model, "+".join(sorted(precisions)), provenance.checkpoint_sha256, bundle.digest, provenance.random_weights
        )
        self._keep(replace(self.report, models=(*self.report.models, record)))
        return [*made, (model, folder)]

    def _bench(self, model: str, bundle: Path, backends: Sequence[Backend]) -> None:
        """All in one process, so that they take turns, PyTorch on the GPU first; each alone where that fails."""
        if not backends:
            self._skip("bench", model, "", "no backend passed parity")
            return
        options: list[str | Path] = ["--bundle", bundle, "--rounds", str(self._rounds)]
        if model.startswith(_RANDOM):
            options += ["--run", self._work / "run"]
        on_gpu = any(backend in GPU_BACKENDS for backend in backends)
        names = [*(_TORCH_CONTENDERS if on_gpu and self._works(_TORCH_ABILITY) else ()), *backends]
        if not self._step("bench", model, ",".join(names), *options, "--backends", ",".join(names)) and len(names) > 1:
            for name in names:
                self._step("bench", model, name, *options, "--backends", name)

    def _step(self, action: str, model: str, backend: str, *arguments: str | Path) -> bool:
        """Run one command; whether it passed."""
        print(f"gpu-check: {' '.join(part for part in (action, model, backend) if part)}", file=sys.stderr, flush=True)
        command = [*self._program, action, *map(str, arguments), "--json"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=_STEP_LIMIT_S
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            code, out, err = 1, "", f"took longer than {_STEP_LIMIT_S} s and was ended"
        report = _document(out)
        reason = "" if code == 0 else _reason(code, err)
        if code == 0 and report is None:
            reason = "it printed no JSON"
        outcome = Outcome.FAILED if reason else Outcome.PASSED
        self._add(Step(action, model, backend, outcome, reason, round(time.perf_counter() - start, 1), report))
        return outcome is Outcome.PASSED

    def _skip(self, action: str, model: str, backend: str, reason: str) -> None:
        self._add(Step(action, model, backend, Outcome.SKIPPED, reason))

    def _add(self, step: Step) -> None:
        self._keep(replace(self.report, steps=(*self.report.steps, step)))

    def _keep(self, report: CheckReport) -> None:
        """A check that is killed leaves what it knows; one that never found a GPU leaves nothing."""
        self.report = report
        if report.models or report.complete:
            atomic_write_json(self._out, report.as_dict())


def main() -> None:
    """Entry point of ``python -m bench.gpu_check``."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=("tiny", "b", "l"), default="tiny", help="size of the random models")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="the report")
    parser.add_argument("--work", type=Path, help="folder for bundles; the system's temporary one by default")
    parser.add_argument("--rounds", type=int, default=30, help="of the bench, at least 3")
    parser.add_argument("--allow-cpu", action="store_true", help="go on where no backend runs on a GPU")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=asked.work) as work:
            report = GpuCheck(asked.preset, asked.out, Path(work), asked.allow_cpu, asked.rounds).run()
    except (RSRefSegError, OSError) as error:
        print(f"gpu-check: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, RSRefSegError) else 2)
    from rich.console import Console

    console = Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    console.print(report.render())
    console.print(f"report: {asked.out}")
    sys.exit(0 if report.holds else 1)


def _document(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _reason(code: int, err: str) -> str:
    """The command's own last line, or the signal that ended it."""
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1].removeprefix("rsrefseg: ") if lines else "it said nothing"
    return f"ended by signal {-code}: {last}" if code < 0 else last


if __name__ == "__main__":
    main()
