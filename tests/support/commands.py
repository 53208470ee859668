"""Runs commands in this process or in a new one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsrefseg import cli
from tests.support import ROOT

ENTRY = "from rsrefseg.__main__ import main; main()"  # what the console script runs


@dataclass(frozen=True)
class Ran:
    """Exit code, result and output of a command."""

    code: int
    result: Any
    out: str
    err: str


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Ran:
    """Run a command in this process."""
    capsys.readouterr()
    code, result = cli.run_command([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return Ran(code, result, written.out, written.err)


def run_alone(
    *arguments: str | bytes | Path,
    folder: Path = Path(),
    environment: dict[str, str] | None = None,
    script: str = ENTRY,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command or another script in a new process in ``folder``."""
    command: Sequence[str | bytes | Path] = [sys.executable, "-P", "-c", script, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    return subprocess.run(command, cwd=folder, env=variables, text=True, errors="replace", check=False, **streams)


def assert_refused(ran: Ran, *facts: str) -> None:
    """Assert exit code 2 and a single line on standard error that contains all ``facts``."""
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert ran.err.startswith("rsrefseg: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err) < 700, "more than anybody reads"
    for fact in facts:
        assert fact in ran.err


def assert_refused_last(ran: Ran, *facts: str) -> None:
    """Assert exit code 2 and ``facts`` in the last line of standard error; notes and progress may precede it."""
    assert_refused(Ran(ran.code, ran.result, ran.out, ran.err.splitlines(keepends=True)[-1]), *facts)
