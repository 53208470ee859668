"""Start-up times and peak memory of runners, each measured in processes of its own."""

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
    """Figures of fresh processes. The steps are the same for every runner.

    Attributes:
        import_ms: importing the runtime and checking that it can run here; Python, numpy and this package are imported
            before.
        open_ms: finding the model's files and computing their digests, which brings them into the disk cache.
            ``onnx-naive`` verifies the model that its graphs, in its cache by then, were exported from.
        load_ms: reading the weights and preparing all stages. What a runtime leaves to the first run, such as
            ``torch.compile``, is part of ``first_answer_ms``.
        load_least_ms, load_most_ms: of the quickest and the slowest process; the three times above are medians.
        first_answer_ms: of the first image and phrase, in the first process.
        peak_memory_mib: peak resident memory after a first and a next phrase, in the first process.
        device_memory_mib: memory of an NVIDIA GPU by then, in the first process.
        error: why there are no figures.
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
    """Start ``STARTS`` processes for each runner, interleaved: the first one answers, the others only load.

    Args:
        names: of the runners.
        bundle: the model.
        run: the run that holds it, for PyTorch.
        say: receives a line before each start.
    """
    starts: dict[str, list[Startup]] = {name: [] for name in names}
    for number in range(STARTS):
        for name, mine in starts.items():
            if all(one.error is None for one in mine):
                say(f"{name}: start-up and memory, process {number + 1} of {STARTS}")
                mine.append(start(name, bundle, run, answers=number == 0))
    return [_joined(mine) for mine in starts.values()]


def _joined(starts: Sequence[Startup]) -> Startup:
    """One record of several processes of a runner; a failed one stands for all."""
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


def start(name: str, bundle: Bundle, run: Path | None, answers: bool = True) -> Startup:
    """Start a process that imports, opens, loads and, if it ``answers``, asks one runner.

    A process that fails is reported, not raised.
    """
    arguments = [name, str(bundle.root.absolute()), str(run.absolute()) if run else "", "answers" if answers else ""]
    try:
        return msgspec.json.decode(run_module("rsrefseg.bench.latency.startup", arguments), type=Startup)
    except RSRefSegError as error:
        return Startup(error=str(error))


def _start_here(name: str, bundle: Bundle, run: Path | None, answers: bool) -> Startup:
    workload = workload_of(load_reference(bundle))
    runner, import_ms = timed(lambda: make_runner(name, bundle, run))
    _, open_ms = timed(runner.open)
    _, load_ms = timed(runner.load)
    first_answer_ms = None
    if answers:
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
    """Entry point of the new process: runner, bundle, run and "answers" as arguments, JSON on standard output."""
    name, bundle, run, answers = sys.argv[1:]
    try:
        found = _start_here(name, Bundle.open(bundle), Path(run) if run else None, bool(answers))
    except RSRefSegError as error:
        sys.exit(" ".join(str(error).split()))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
