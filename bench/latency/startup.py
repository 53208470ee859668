"""Start-up times and peak memory of contenders, in processes of their own, so that no other's memory is counted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.errors import RSRefSegError

from ..system.gpu import gpu_memory_used_mib
from ..system.machine import peak_memory_mib
from .runners import open_contender
from .scenarios import FIRST_PHRASE, NEXT_PHRASE, TOTAL, question_for, timed_pass

# Imports Python, the runtime and nothing of the folder the user happens to stand in.
_COMMAND = ("-P", "-m", "rsrefseg.bench.latency.startup")
_CHUNK_BYTES = 1 << 24
STARTS = 3


@dataclass(frozen=True, slots=True)
class Startup:
    """Fresh processes up to loading, the first of them up to its second answer; files come from the disk cache.

    Attributes:
        import_ms: importing the runtime and finding the model; their median.
        load_ms: loading all stages, checks of the files' digests included; their median.
        load_least_ms: of the quickest of several.
        load_most_ms: of the slowest of several.
        first_answer_ms: the first answer ever, cold.
        memory_before_load_mib: peak resident memory of interpreter and libraries.
        peak_memory_mib: peak resident memory after a first and a next phrase.
        device_memory_mib: of an NVIDIA GPU, taken by then: runtimes keep what they once took.
        error: why there are no figures.
    """

    import_ms: float | None = None
    load_ms: float | None = None
    load_least_ms: float | None = None
    load_most_ms: float | None = None
    first_answer_ms: float | None = None
    memory_before_load_mib: float | None = None
    peak_memory_mib: float | None = None
    device_memory_mib: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_startups(
    names: Sequence[str], bundle: Bundle, run: Path | None, say: Callable[[str], None]
) -> list[Startup]:
    """Start ``STARTS`` processes for each contender, in turn: the first answers, the others only load.

    Args:
        names: of the contenders.
        bundle: what all of them load.
        run: the run that holds its model, for PyTorch.
        say: gets a line before each start.
    """
    starts: dict[str, list[Startup]] = {name: [] for name in names}
    for turn in range(STARTS):
        for name, mine in starts.items():
            if all(one.error is None for one in mine):
                say(f"{name}: start-up and memory, process {turn + 1} of {STARTS}")
                mine.append(measure_startup(name, bundle, run, answers=turn == 0))
    return [_joined(mine) for mine in starts.values()]


def _joined(starts: Sequence[Startup]) -> Startup:
    """One for several of a contender; one that failed speaks for all."""
    failed = next((one for one in starts if one.error is not None), None)
    if failed is not None:
        return failed
    imports = [one.import_ms for one in starts if one.import_ms is not None]
    loads = [one.load_ms for one in starts if one.load_ms is not None]
    return replace(
        starts[0],
        import_ms=median(imports),
        load_ms=median(loads),
        load_least_ms=min(loads),
        load_most_ms=max(loads),
    )


def measure_startup(name: str, bundle: Bundle, run: Path | None, answers: bool = True) -> Startup:
    """Start a process that opens, loads and asks one contender; a process that dies is reported, not raised.

    The bundle's files are read before, so that loading is timed from the disk cache, whatever the system has dropped
    from it meanwhile.

    Args:
        name: of the contender.
        bundle: what it loads.
        run: the run that holds its model, for PyTorch.
        answers: whether it is asked anything once it is loaded; without, memory is that of loading.
    """
    for file in filter(Path.is_file, bundle.root.iterdir()):
        _read(file)
    arguments = [
        name,
        str(bundle.root.absolute()),
        str(run.absolute()) if run is not None else "",
        "answers" if answers else "",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, *_COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return Startup(error=lines[-1] if lines else f"its process ended with {done.returncode}")
    return Startup(**json.loads(done.stdout))


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as stream:
        while stream.read(_CHUNK_BYTES):
            pass


def examine(name: str, bundle_path: Path, run: Path | None, answers: bool) -> Startup:
    """What ``measure_startup`` runs in the new process.

    Raises:
        RSRefSegError: the contender cannot run.
    """
    bundle = Bundle.open(bundle_path)
    start = time.perf_counter()
    contender = open_contender(name, bundle, run)
    opened = time.perf_counter()
    question = question_for(bundle)
    before = peak_memory_mib()
    loading = time.perf_counter()
    contender.load()
    loaded = time.perf_counter()
    first_answer_ms = None
    if answers:
        first = timed_pass(contender, FIRST_PHRASE, question, 0, None)
        timed_pass(contender, NEXT_PHRASE, question, 1, first.features)
        first_answer_ms = first.spans_ms[TOTAL]
    return Startup(
        import_ms=(opened - start) * 1e3,
        load_ms=(loaded - loading) * 1e3,
        first_answer_ms=first_answer_ms,
        memory_before_load_mib=before,
        peak_memory_mib=peak_memory_mib(),
        device_memory_mib=gpu_memory_used_mib(),
    )


def main() -> None:
    """Entry point of the new process: contender, bundle, run and "answers" as arguments, JSON on standard output."""
    name, bundle, run, answers = sys.argv[1:]
    try:
        found = examine(name, Path(bundle), Path(run) if run else None, bool(answers))
    except RSRefSegError as error:
        sys.exit(" ".join(str(error).split()))
    print(json.dumps(found.as_dict()))


if __name__ == "__main__":
    main()
