"""``make gpu-check`` on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests.support import ROOT

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this machine may have a GPU"
)


def gpu_check(folder: Path, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), "--rounds", "3", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RSREFSEG_PYTHON": python}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_dry_run_on_the_cpu_checks_parity_and_latency(tmp_path: Path) -> None:
    ran = gpu_check(tmp_path, "--allow-cpu")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [
        "doctor",
        "export",
        "parity-onnxruntime",
        "bench-onnxruntime",
    ]
    assert ran.stdout.count("passed") == 4
    assert json.loads((tmp_path / "gpu_check" / "parity-onnxruntime.json").read_text())["holds"] is True
    bench = json.loads((tmp_path / "gpu_check" / "bench-onnxruntime.json").read_text())
    assert bench["machine"]["versions"]["onnxruntime"]


def test_without_a_gpu_it_ends_with_2(tmp_path: Path) -> None:
    ran = gpu_check(tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no backend works on a GPU" in ran.stderr
    assert json.loads((tmp_path / "gpu_check" / "doctor.json").read_text())["abilities"]


def test_a_failing_command_does_not_stop_the_others(tmp_path: Path) -> None:
    double = tmp_path / "python"
    double.write_text(
        f'#!/bin/sh\ncase "$3" in export|bench) echo "{{}}";; parity) echo crashed >&2; kill -9 $$;;\n'
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    double.chmod(0o755)
    ran = gpu_check(tmp_path, "--allow-cpu", "--out", "report", python=str(double))
    assert ran.returncode == 1
    lines = {line.split()[0]: line for line in ran.stdout.splitlines()}
    assert "FAILED" in lines["parity-onnxruntime"]
    assert "passed" in lines["bench-onnxruntime"]
