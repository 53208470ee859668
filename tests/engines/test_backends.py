"""A backend asked for by name runs or is refused; `auto` takes the next one whatever fails."""

import sys
from functools import partialmethod
from pathlib import Path
from unittest.mock import Mock

import pytest

from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError, MissingPartError, RSRefSegError
from rsrefseg.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from rsrefseg.engines.segmenter import Segmenter
from tests.support.commands import run_here
from tests.support.places import beside_bundle


def test_less_than_one_thread_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BadInputError, match="at least 1"):
        select_backend("auto", bundle, threads=0)


def test_open_reports_the_backend_and_why(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Segmenter.open(folder) as segmenter:
        assert segmenter.engine.name == "onnxruntime"
        assert segmenter.backend_reason.startswith("onnxruntime; not onnxruntime-cuda: ")
        assert segmenter.engine.provider_of(Stage.SAM_ENCODER) == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")  # a backend that is not installed is no failure


FAILURES = [
    RSRefSegError("CUDA could not count the GPUs (error 802, system not yet initialized): start again"),
    MissingPartError("the driver is too old: update it"),
    RuntimeError("first line\nsecond line"),
    OSError("libcudart.so.13: cannot open shared object file"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fails_in", ["__init__", "_load"])
def test_auto_continues_whatever_fails_and_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception, fails_in: str,
) -> None:  # fmt: skip
    on_cpu = partialmethod(OnnxRuntimeCudaEngine.__init__, device="cpu")
    monkeypatch.setattr(OnnxRuntimeCudaEngine, "__init__", on_cpu)
    monkeypatch.setattr(OnnxRuntimeCudaEngine, fails_in, Mock(side_effect=error))
    beside_bundle(folder, tmp_path, monkeypatch)
    ran = run_here(capsys, "infer", "scene.png", "the red square")
    assert ran.code == 0
    reason = str(error).split("\n")[0].partition(": ")[0]
    assert ran.result["backend"].startswith("onnxruntime; not onnxruntime-cuda: ")
    assert reason in ran.result["backend"]
    (line,) = ran.err.splitlines()
    assert "onnxruntime-cuda" in line
    assert reason in line
    with pytest.raises(type(error)):
        select_backend("onnxruntime-cuda", Bundle.open(folder)).engine.load()


@pytest.mark.parametrize("name", [Backend.ONNXRUNTIME, Backend.OPENVINO, Backend.AUTO])
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: Backend
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    extra = r"rsrefseg\[openvino\]" if name is Backend.OPENVINO else r"rsrefseg\[cpu\]"
    with pytest.raises(MissingPartError, match=extra):
        select_backend(name, bundle)
