"""``make gpu-check`` where there is no GPU, and where a double says that there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.bench.system.gpu_check import GpuCheck
from rsrefseg.bench.system.gpu_report import Gpu, Outcome, Step, this_gpu
from rsrefseg.engines.errors import MissingPartError
from tests.support import ROOT
from tests.support.exported import Exported
from tests.support.printing import printed

# A double of `rsrefseg` in what takes long (an export is a copy of a bundle that was exported before) and, with
# CLAIMS=1, in what the machine has. Everything else is the real command.
PROGRAM = """
import json, os, shutil, signal, sys
action, arguments = sys.argv[1], sys.argv[2:]
if action == "export":
    shutil.copytree(os.environ["MADE"], arguments[arguments.index("--out") + 1])
    print("{}")
elif action == "doctor" and os.environ.get("CLAIMS"):
    works = {"onnxruntime": True, "onnxruntime-cuda": True, "tensorrt": True}
    print(json.dumps({"abilities": [{"name": f"x ({n})", "works": w, "detail": ""} for n, w in works.items()]}))
elif action == "parity" and "onnxruntime-cuda" in arguments:
    print("CUDA failure 700", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
else:
    from rsrefseg.cli import main
    main()
"""


@pytest.fixture
def place(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without runs; exports give the small bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADE", str(exported.bundle))
    monkeypatch.setattr("rsrefseg.bench.system.gpu_report.shutil.which", lambda program: None)
    return tmp_path


def gpu_check(place: Path, allow_cpu: bool) -> GpuCheck:
    (place / "work").mkdir()
    return GpuCheck("tiny", place / "report.json", place / "work", allow_cpu, 3, (sys.executable, "-P", "-c", PROGRAM))


def outcomes(document: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    return {(step["action"], step["model"], step["backend"]): step["outcome"] for step in document["steps"]}


def test_without_a_gpu_it_ends_with_2_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have a GPU")
    command = [sys.executable, "-m", "rsrefseg.bench.system.gpu_check", "--out", "report.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    progress, line = ran.stderr.splitlines()
    assert progress == "gpu-check: doctor"
    assert line.startswith("gpu-check: no backend runs on a GPU here (onnxruntime-cuda: ")
    assert "; tensorrt: " in line
    assert "--allow-cpu" in line
    assert list(tmp_path.iterdir()) == []


def test_on_the_cpu_everything_there_is_runs_and_what_is_not_is_told(place: Path) -> None:
    report = gpu_check(place, allow_cpu=True).run()
    document = json.loads((place / "report.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(report.as_dict()))
    assert document["complete"] is True
    assert document["holds"] is True
    assert document["gpu"] is None
    assert document["machine"]["versions"]["onnxruntime"]
    assert [model["name"] for model in document["models"]] == ["random tiny fp32", "random tiny fp16"]
    assert all(len(model[digest]) == 64 for model in document["models"] for digest in _DIGESTS)
    found = outcomes(document)
    for model in ("random tiny fp32", "random tiny fp16"):
        assert found["parity", model, "onnxruntime"] == "passed"
        assert found["bench", model, "onnxruntime"] == "passed"
        assert found["parity", model, "onnxruntime-cuda"] == "skipped"
        assert found["parity", model, "tensorrt"] == "skipped"
    text = printed(report)
    assert "no GPU" in text
    assert "mask IoU 1.0000" in text
    assert "onnxruntime next phrase" in text
    assert "skipped: parity onnxruntime-cuda - " in text
    assert "skipped: export - there is no run under ./runs" in text
    assert "everything that ran holds" in text


_DIGESTS = ("checkpoint_sha256", "bundle_sha256")


def test_a_backend_that_crashes_or_cannot_build_does_not_take_the_others_along(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAIMS", "1")
    report = gpu_check(place, allow_cpu=False).run()
    assert not report.holds
    steps = {(step.action, step.backend): step for step in report.steps if step.model == "random tiny fp32"}
    crashed = steps["parity", "onnxruntime-cuda"]
    assert (crashed.outcome, crashed.reason) == (Outcome.FAILED, "ended by signal 9: CUDA failure 700")
    assert steps["build", "tensorrt"].outcome is Outcome.FAILED
    assert steps["build", "tensorrt"].reason.startswith("tensorrt is not installed")
    assert steps["parity", "tensorrt"].reason == "its engines could not be built"
    assert steps["parity", "onnxruntime"].outcome is Outcome.PASSED
    assert steps["bench", "onnxruntime"].outcome is Outcome.PASSED
    text = printed(report)
    assert "failed: parity onnxruntime-cuda - ended by signal 9" in text
    assert "a check does not hold" in text


def test_a_check_without_any_answer_of_the_doctor_is_refused(place: Path) -> None:
    check = GpuCheck("tiny", place / "report.json", place, False, 3, (sys.executable, "-c", "print('nothing')"))
    with pytest.raises(MissingPartError, match="no backend runs on a GPU here"):
        check.run()
    assert check.report.steps == (
        Step("doctor", "", "", Outcome.FAILED, "it printed no JSON", check.report.steps[0].seconds),
    )


def test_the_gpu_is_described_by_the_drivers_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.159.04, 81559, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert this_gpu() == Gpu("NVIDIA H100 80GB HBM3", "580.159.04", "81559", "9.0")
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9\n"
    )
    assert this_gpu() is None
