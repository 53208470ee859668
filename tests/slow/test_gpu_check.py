"""``make gpu-check`` on a machine without a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests.support import ROOT

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this machine may have a GPU"
)


SCRIPT = ROOT / "bench" / "gpu_check.sh"


def gpu_check(
    folder: Path, *options: str, python: str = sys.executable, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script), "--rounds", "3", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RSREFSEG_PYTHON": python}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


STEPS = (
    "doctor",
    "export-fp16 parity-fp16-onnxruntime bench-onnxruntime export-fp32 parity-fp32-onnxruntime",
    "export-padded parity-padded bench-padded export-additive parity-additive bench-additive",
    "export-folded parity-folded bench-folded scenes train-fp32 train-bf16 train-checkpointing train-compile",
)


def test_a_dry_run_on_the_cpu_checks_parity_latency_and_training(tmp_path: Path) -> None:
    ran = gpu_check(tmp_path, "--allow-cpu")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    steps = json.loads((tmp_path / "gpu_check" / "gpu_check.json").read_text())
    checks = [step for step in steps if not step["name"].startswith("tensorrt-rtx")]
    assert [step["name"] for step in checks] == " ".join(STEPS).split()
    assert {step["outcome"] for step in checks} == {"passed"}
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [step["name"] for step in steps]
    reports = {step["name"]: step["report"] for step in steps}
    assert all(report["holds"] for name, report in reports.items() if name.startswith("parity"))
    assert reports["bench-padded"]["machine"]["versions"]["onnxruntime"]
    assert "tensorrt-rtx" in reports, "tried, and its answer recorded, even if it fails"


def test_a_second_run_continues_after_what_passed(tmp_path: Path) -> None:
    double = tmp_path / "python"
    double.write_text(
        f'#!/bin/sh\nif [ "$1" = - ] || [ "$1" = -c ] || [ "$3" = doctor ]; then exec {sys.executable} "$@"; fi\n'
        'case "$3" in bench) test -e fixed;; *) echo "{}";; esac\n'
    )
    double.chmod(0o755)
    assert gpu_check(tmp_path, "--allow-cpu", python=str(double)).returncode == 1
    (tmp_path / "fixed").touch()
    assert outcomes(gpu_check(tmp_path, "--allow-cpu", python=str(double))) == {
        "export-fp16": "passed before",
        "scenes": "passed before",
        "bench-onnxruntime": "passed",
        "doctor": "passed",
    }
    (tmp_path / "gpu_check" / "work").rmdir()
    assert outcomes(gpu_check(tmp_path, "--allow-cpu", python=str(double))) == {
        "export-fp16": "passed",
        "scenes": "passed",
        "bench-onnxruntime": "passed before",
        "doctor": "passed",
    }
    other = gpu_check(tmp_path, "--allow-cpu", "--preset", "b", python=str(double))
    assert (other.returncode, other.stdout) == (2, "")
    assert "gpu_check has results of other options" in other.stderr


def outcomes(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {line.split()[0]: line.split("s  ")[-1] for line in ran.stdout.splitlines()}
    return {name: found[name] for name in ("export-fp16", "scenes", "bench-onnxruntime", "doctor")}


def test_results_of_other_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    script = Path(shutil.copy(ROOT / "bench" / "gpu_check.sh", tmp_path / "bench"))
    for command in ("init -q", "add bench", "-c user.name=a -c user.email=b commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    double = tmp_path / "python"
    double.write_text('#!/bin/sh\ncase "$1" in -c) exit 1;; *) echo "{}";; esac\n')
    double.chmod(0o755)
    codes = [gpu_check(tmp_path, "--allow-cpu", python=str(double), script=script).returncode for _ in range(2)]
    script.write_text(script.read_text() + "# changed\n")
    codes.append(gpu_check(tmp_path, "--allow-cpu", python=str(double), script=script).returncode)
    assert codes == [0, 0, 2]


@pytest.mark.parametrize("options", [["--preset"], ["--allow-cpu", "--out"], ["--presets", "b"]])
def test_an_option_without_a_value_or_unknown_is_refused(options: list[str], tmp_path: Path) -> None:
    ran = gpu_check(tmp_path, *options)
    assert (ran.returncode, ran.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert re.fullmatch(r"gpu-check: .*--(preset|out).*\n", ran.stderr)


def test_without_a_gpu_it_ends_with_2(tmp_path: Path) -> None:
    ran = gpu_check(tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no backend works on a GPU" in ran.stderr
    assert json.loads((tmp_path / "gpu_check" / "doctor.json").read_text())["abilities"]


def test_a_failing_command_does_not_stop_the_others(tmp_path: Path) -> None:
    double = tmp_path / "python"
    double.write_text(
        f'#!/bin/sh\ncase "$3" in export|bench) echo "{{}}";; data) exit 1;; parity) printf "{{"; kill -9 $$;;\n'
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    double.chmod(0o755)
    ran = gpu_check(tmp_path, "--allow-cpu", "--out", "report", python=str(double))
    assert ran.returncode == 1
    lines = {line.split()[0]: line for line in ran.stdout.splitlines()}
    assert len(json.loads((tmp_path / "report" / "gpu_check.json").read_text())) == len(lines)
    assert "FAILED" in lines["parity-fp16-onnxruntime"]
    assert "passed" in lines["bench-onnxruntime"]
