"""Commands measured in processes of their own."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.commands import ENTRY

GIB = 2**30
# Starts a command and writes its peak memory in KiB. A process inherits the peak of the one that starts it, so this
# small one stands between the tests and the command.
_WATCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


class Measured(NamedTuple):
    """A successful command: its JSON, duration in s and peak memory."""

    document: Any
    wall_s: float
    peak_gib: float


def measured(folder: Path, *arguments: str) -> Measured:
    """Run a command with ``--json`` in a new process and measure it."""
    with tempfile.TemporaryFile() as out, tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, "-P", "-c", ENTRY, *arguments, "--json"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", _WATCH, peak.name, *command], cwd=folder, stdout=out, check=True)
        wall_s = time.perf_counter() - start
        out.seek(0)
        return Measured(json.load(out), wall_s, int(peak.read()) * 1024 / GIB)


def size_of(bundle: Path) -> int:
    return sum(file.stat().st_size for file in bundle.iterdir())
