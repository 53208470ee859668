"""A double of the Python bindings of TensorRT 10.9 or 11.4, which runs graphs with ONNX Runtime, without a GPU.

It enforces the documented rules: networks are strongly typed (11 supports no others), shapes are within the profile,
every address is set before a run, activation memory comes from outside if so configured, a plan loads only in the
version that built it, and work runs on a stream of ``cuda_double``. Where the real library returns ``None``, ``False``
or -1 and logs the reason, the double does the same; tests inject such failures by name in ``faults``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tests.support.doubles import tensorrt_building, tensorrt_running, tensorrt_values
from tests.support.doubles.tensorrt_values import CURRENT, State

VERSIONS = ("10.9.0.34", "11.4.0.106")

CLASSES = {
    name: one
    for module in (tensorrt_values, tensorrt_building, tensorrt_running)
    for name, one in vars(module).items()
    if isinstance(one, type) and one.__module__ == module.__name__
}


@contextmanager
def doubled(version: str = VERSIONS[0]) -> Iterator[State]:
    """Replace ``tensorrt`` and ``cuda.bindings.runtime`` by the doubles."""
    state = State(version)
    CURRENT[:] = [state]
    tensorrt, cuda, bindings = ModuleType("tensorrt"), ModuleType("cuda"), ModuleType("cuda.bindings")
    tensorrt.__dict__.update(CLASSES, __version__=version)
    tensorrt.__dict__["NetworkDefinitionCreationFlag"] = tensorrt_values.NetworkDefinitionCreationFlag()
    bindings.runtime = state.cuda.module()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for module in (tensorrt, cuda, bindings, bindings.runtime):
            module.__spec__ = ModuleSpec(module.__name__, None)  # torch looks whether there is a tensorrt
            patch.setitem(sys.modules, module.__name__, module)
        yield state
