"""Runs modules of this package in new processes, for measurements without earlier imports."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rsrefseg.engines.errors import RSRefSegError


def run_module(name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run ``python -m`` with this process's import path and return its standard output.

    Raises:
        RSRefSegError: the process failed; the message is the last line of its standard error.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RSRefSegError(lines[-1] if lines else f"the process ended with exit code {done.returncode}")
    return done.stdout
