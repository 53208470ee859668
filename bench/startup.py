"""Start-up time and peak memory of one contender, in a process of its own, so that no other's memory is counted."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contenders import open_contender
from bench.machine import peak_memory_mib
from bench.nvidia_smi import gpu_memory_used_mib
from bench.scenarios import FIRST_PHRASE, NEXT_PHRASE, TOTAL, question_for, timed_pass
from engines.bundle import Bundle
from engines.errors import RSRefSegError

# Imports Python, the runtime and nothing of the folder the user happens to stand in.
_COMMAND = ("-P", "-m", "bench.startup")
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Startup:
    """A fresh process up to its second answer; the bundle's files come from the disk cache.

    Attributes:
        import_ms: importing the runtime and finding the model.
        load_ms: loading all stages, checks of the files' digests included.
        first_answer_ms: the first answer ever, cold.
        memory_before_load_mib: peak resident memory of interpreter and libraries.
        peak_memory_mib: peak resident memory after a first and a next phrase.
        device_memory_mib: of an NVIDIA GPU, taken by then: runtimes keep what they once took.
        error: why there are no figures.
    """

    import_ms: float | None = None
    load_ms: float | None = None
    first_answer_ms: float | None = None
    memory_before_load_mib: float | None = None
    peak_memory_mib: float | None = None
    device_memory_mib: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_startup(name: str, bundle: Bundle, run: Path | None) -> Startup:
    """Start a process that opens, loads and asks one contender; a process that dies is reported, not raised.

    The bundle's files are read before, so that loading is timed from the disk cache, whatever the system has dropped
    from it meanwhile.
    """
    for file in filter(Path.is_file, bundle.root.iterdir()):
        _read(file)
    arguments = [name, str(bundle.root.absolute()), str(run.absolute()) if run is not None else ""]
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


def examine(name: str, bundle_path: Path, run: Path | None) -> Startup:
    """What :func:`measure_startup` runs in the new process.

    Raises:
        RSRefSegError: the contender cannot run.
    """
    bundle = Bundle.open(bundle_path)
    start = time.perf_counter()
    contender = open_contender(name, bundle, run)
    opened = time.perf_counter()
    question = question_for(bundle)
    before = peak_memory_mib()
    on_device = gpu_memory_used_mib() if contender.device == "cuda" else None
    loading = time.perf_counter()
    contender.load()
    loaded = time.perf_counter()
    first = timed_pass(contender, FIRST_PHRASE, question, 0, None)
    timed_pass(contender, NEXT_PHRASE, question, 1, first.features)
    return Startup(
        import_ms=(opened - start) * 1e3,
        load_ms=(loaded - loading) * 1e3,
        first_answer_ms=first.spans_ms[TOTAL],
        memory_before_load_mib=before,
        peak_memory_mib=peak_memory_mib(),
        device_memory_mib=None if on_device is None else (gpu_memory_used_mib() or on_device) - on_device,
    )


def main() -> None:
    """Entry point of the new process: contender, bundle and run as arguments, JSON on standard output."""
    name, bundle, run = sys.argv[1:]
    try:
        found = examine(name, Path(bundle), Path(run) if run else None)
    except RSRefSegError as error:
        sys.exit(" ".join(str(error).split()))
    print(json.dumps(found.as_dict()))


if __name__ == "__main__":
    main()
