"""``doctor`` warns of versions of TensorRT that are known to be wrong on a GPU."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rsrefseg.engines.known_faults import known_faults
from rsrefseg.engines.tensorrt.library import open_rtx, open_tensorrt
from tests.support.commands import run_here
from tests.support.doubles.tensorrt_double import doubled, doubled_rtx
from tests.support.places import Capsys


def faults(version: str, capability: str, file: str = "/usr/lib/python3/tensorrt.py", jetson: bool = False) -> str:
    with doubled(version):
        library = open_tensorrt()
        library.module = ModuleType("tensorrt")
        library.module.__file__ = file
        return "; ".join(known_faults(library, capability, jetson))


@pytest.mark.parametrize(
    ("version", "capability", "fact"),
    [
        ("10.3.0.26", "8.7", "4723"),
        ("10.4.0.26", "8.6", "4742"),
        ("10.7.0.23", "8.9", "4333"),
        ("11.4.0.106", "12.0", "4837"),
        ("10.13.3.9", "11.0", "Edge-LLM"),
        ("10.9.0.34", "8.6", ""),
        ("10.13.3.9", "8.7", ""),
    ],
)
def test_reported_pairs_are_named(version: str, capability: str, fact: str) -> None:
    found = faults(version, capability)
    assert fact in found
    assert bool(found) is bool(fact)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"file": "/venv/lib/python3.10/site-packages/tensorrt/__init__.py", "jetson": True}, "TensorRT from pip"),
        ({"file": "/venv/lib/python3.10/site-packages/tensorrt/__init__.py"}, ""),
        ({"version": "11.4.1.2", "jetson": True}, "JetPack 7.2.2"),
    ],
)
def test_a_jetson_needs_its_own_tensorrt(options: dict[str, Any], fact: str) -> None:
    found = faults(**{"version": "10.9.0.34", "capability": "8.7", **options})
    assert fact in found
    assert bool(found) is bool(fact)


def test_doctor_names_the_faults_and_the_check(cache: Path, capsys: Capsys) -> None:
    with doubled() as state:
        state.cuda.properties = replace(state.cuda.properties, major=12, minor=0)
        text = run_here(capsys, "doctor").out
    (line,) = [line for line in text.splitlines() if "TensorRT engines" in line]
    assert line.startswith("yes")
    assert "4837" in line
    assert line.endswith("`rsrefseg parity --backend tensorrt`")


def test_doctor_knows_tensorrt_rtx_with_and_without_a_gpu(cache: Path, capsys: Capsys) -> None:
    def row() -> str:
        (line,) = [line for line in run_here(capsys, "doctor").out.splitlines() if "tensorrt-rtx" in line]
        return line

    with doubled_rtx() as state:
        assert f"{open_rtx()}, Double of a GPU (8.6)" in row()
        state.cuda.driver = 0
        assert "compiles only: no NVIDIA driver" in row()
