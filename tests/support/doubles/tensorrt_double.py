"""A double of TensorRT's Python bindings, of 10.9 or 11.4: it runs the stored graph with ONNX Runtime, on no GPU.

It keeps the documented rules: networks are strongly typed (11 knows no other), shapes lie within the profile, every
address is set before a run, activation memory comes from outside where that was agreed, a plan loads only in the
version that made it, and work happens on a stream of ``cuda_double``. Where the real one answers ``None``,
``False`` or -1 and tells the logger why, so does this one; tests plant such answers by name in ``faults``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from tests.support.doubles import tensorrt_building, tensorrt_running, tensorrt_values
from tests.support.doubles.cuda_double import CudaDouble
from tests.support.doubles.tensorrt_state import State, state, use

__all__ = ["VERSIONS", "State", "doubled", "files_below"]

VERSIONS = ("10.9.0.34", "11.4.0.106")

MODULES = (tensorrt_values, tensorrt_building, tensorrt_running)
CLASSES = {
    name: one
    for module in MODULES
    for name, one in vars(module).items()
    if isinstance(one, type) and one.__module__ == module.__name__
}


@contextmanager
def doubled(version: str = VERSIONS[0]) -> Iterator[State]:
    """Put both doubles in the place of ``tensorrt`` and ``cuda.bindings.runtime``."""
    use(State(version, CudaDouble(), error_severity=tensorrt_values.ILogger.Severity.ERROR))
    tensorrt = ModuleType("tensorrt", "A double: no TensorRT.")
    tensorrt.__dict__.update(CLASSES, __version__=version)
    tensorrt.__dict__["NetworkDefinitionCreationFlag"] = tensorrt_values.NetworkDefinitionCreationFlag()
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = state().cuda.module()  # type: ignore[attr-defined]
    replaced = {
        "tensorrt": tensorrt,
        "cuda": cuda,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": bindings.runtime,
    }
    for name, module in replaced.items():
        module.__spec__ = ModuleSpec(name, None)  # torch looks whether there is a tensorrt
    before = {name: sys.modules.get(name) for name in replaced}
    sys.modules.update(replaced)
    try:
        yield state()
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def files_below(folder: Path) -> list[str]:
    """Relative names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
