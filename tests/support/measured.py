"""Commands measured in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.commands import ENTRY

GIB = 2**30


class Measured(NamedTuple):
    """A successful command: its JSON, duration in s and peak memory."""

    document: Any
    wall_s: float
    peak_gib: float


def measured(folder: Path, *arguments: str) -> Measured:
    """Run a command with ``--json`` in a new process and measure it."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-P", "-c", ENTRY, *arguments, "--json"], cwd=folder, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        assert os.waitstatus_to_exitcode(status) == 0, arguments
        out.seek(0)
        return Measured(json.load(out), wall_s, usage.ru_maxrss * 1024 / GIB)


def size_of(bundle: Path) -> int:
    return sum(file.stat().st_size for file in bundle.iterdir())
