"""Measures start-up times and peak memory of runners in new processes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import RSRefSegError

from ..system.gpu import gpu_memory_used_mib
from ..system.machine import peak_memory_mib
from ..system.process import run_module
from .measure import timed, timed_pass
from .runners import make_runner
from .scenarios import FIRST_PHRASE, NEXT_PHRASE, TOTAL, workload_of

STARTS = 3


class Startup(Struct, frozen=True):
    """Times and memory of new processes. The steps are the same for every runner.

    Attributes:
        import_ms: import of the runtime and check that it can run here, after Python, numpy and this package are
            imported.
        open_ms: search for the model's files and check of their digests; a bundle's large unchanged files are not read
            again, a run's are. ``onnx-naive`` verifies the model that its cached graphs were exported from.
        load_ms: reading the weights and preparing all stages. Work that a runtime defers to the first run, such as
            ``torch.compile``, is part of ``first_answer_ms``.
        load_least_ms, load_most_ms: shortest and longest ``load_ms``; the three times above are medians.
        first_answer_ms: time of the first image and phrase, in the first process.
        peak_memory_mib: peak resident memory after a first and a next phrase, in the first process.
        device_memory_mib: memory on an NVIDIA GPU at that time, in the first process.
        error: reason why there are no values.
    """

    import_ms: float | None = None
    open_ms: float | None = None
    load_ms: float | None = None
    load_least_ms: float | None = None
    load_most_ms: float | None = None
    first_answer_ms: float | None = None
    peak_memory_mib: float | None = None
    device_memory_mib: float | None = None
    error: str | None = None


def measure_startups(
    names: Sequence[str], bundle: Bundle, run: Path | None, say: Callable[[str], None]
) -> list[Startup]:
    """Start ``STARTS`` interleaved processes for each runner; the first one predicts, the others only load.

    Args:
        names: names of the runners.
        bundle: bundle with the model.
        run: run with the bundle's model, for PyTorch.
        say: called with a line before each start.
    """
    starts: dict[str, list[Startup]] = {name: [] for name in names}
    for number in range(STARTS):
        for name, mine in starts.items():
            if all(one.error is None for one in mine):
                say(f"{name}: start-up and memory, process {number + 1} of {STARTS}")
                mine.append(start(name, bundle, run, predict=number == 0))
    return [_joined(mine) for mine in starts.values()]


def _joined(starts: Sequence[Startup]) -> Startup:
    """Combine the records of a runner's processes; if one failed, return its record."""
    if failed := [one for one in starts if one.error is not None]:
        return failed[0]
    loads = [one.load_ms or 0.0 for one in starts]
    return replace(
        starts[0],
        import_ms=median(one.import_ms or 0.0 for one in starts),
        open_ms=median(one.open_ms or 0.0 for one in starts),
        load_ms=median(loads),
        load_least_ms=min(loads),
        load_most_ms=max(loads),
    )


def start(name: str, bundle: Bundle, run: Path | None, predict: bool = True) -> Startup:
    """Start a process that imports, opens and loads a runner and, with ``predict``, segments two phrases.

    A failure of the process is reported in the result, not raised.
    """
    arguments = [name, str(bundle.root.absolute()), str(run.absolute()) if run else "", "predict" if predict else ""]
    try:
        return msgspec.json.decode(run_module("rsrefseg.bench.latency.startup", arguments), type=Startup)
    except RSRefSegError as error:
        return Startup(error=str(error))


def _start_here(name: str, bundle: Bundle, run: Path | None, predict: bool) -> Startup:
    workload = workload_of(load_reference(bundle))
    runner, import_ms = timed(lambda: make_runner(name, bundle, run))
    _, open_ms = timed(runner.open)
    _, load_ms = timed(runner.load)
    first_answer_ms = None
    if predict:
        spans_ms, features = timed_pass(runner, FIRST_PHRASE, workload, 0, None)
        first_answer_ms = spans_ms[TOTAL]
        timed_pass(runner, NEXT_PHRASE, workload, 1, features)
    return Startup(
        import_ms=import_ms,
        open_ms=open_ms,
        load_ms=load_ms,
        first_answer_ms=first_answer_ms,
        peak_memory_mib=peak_memory_mib(),
        device_memory_mib=gpu_memory_used_mib() if runner.device == "cuda" else None,
    )


def main() -> None:
    """Entry point of the new process: arguments runner, bundle, run and "predict"; JSON on standard output."""
    name, bundle, run, predict = sys.argv[1:]
    try:
        found = _start_here(name, Bundle.open(bundle), Path(run) if run else None, bool(predict))
    except RSRefSegError as error:
        sys.exit(" ".join(str(error).split()))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
