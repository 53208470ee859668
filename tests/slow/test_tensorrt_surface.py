"""Engines type-check against both major versions of TensorRT, and the CUDA double matches cuda-python."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.doubles.cuda_double import CudaDouble

STUBS = [ROOT / "tests" / "support" / "tensorrt_stubs" / major for major in ("10", "11")]
# A folder with the whole API of both, which the stubs of the tests are a part of
if whole_api := os.environ.get("RSREFSEG_TENSORRT_STUBS"):
    STUBS += [next(Path(whole_api).glob(f"{major}.*/tensorrt.pyi")).parent for major in ("10", "11")]


@pytest.mark.parametrize("stubs", STUBS, ids=lambda stubs: stubs.name)
def test_the_engines_type_check_against_both_majors(stubs: Path) -> None:
    cache = ROOT / ".mypy_cache" / "tensorrt"  # one for both: all but the engines' part is the same
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={cache}"]
        + [str(path) for path in (ROOT / "rsrefseg" / "engines" / "tensorrt").glob("*.py")],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_double_of_cuda_is_a_part_of_the_real_bindings() -> None:
    """Compare names, numbers of arguments and values of enums, if cuda-python is installed."""
    real = pytest.importorskip("cuda.bindings.runtime")
    double = CudaDouble().module()
    for name in (name for name in vars(double) if name.startswith("cuda")):
        mine, theirs = getattr(double, name), getattr(real, name)
        if isinstance(mine, int):
            assert mine == theirs, name
        elif isinstance(mine, type):
            assert {member.name: int(member) for member in mine} == {
                member.name: int(getattr(theirs, member.name)) for member in mine
            }
        else:
            wanted = list(inspect.signature(theirs).parameters)
            assert list(inspect.signature(mine).parameters) == wanted, name
