"""A double of the device for TensorRT 10, 11 and RTX: the real parser and compiler, engines that ONNX Runtime runs.

Parser, network, profiles, configuration and compiler are those of the installed TensorRT-RTX, whose names are those of
TensorRT 11. Only what needs a GPU is doubled: loading an engine, inspecting it, its contexts, the cache of compiled
kernels, and CUDA. The double enforces the documented rules: shapes are within the profile, every address is set before
a run, activation memory comes from outside if so configured, and work runs on a stream of ``cuda_double``. Where the
real library returns ``None``, ``False`` or -1 and logs the reason, the double does the same; tests inject such failures
by name in ``faults``.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import onnx
import pytest
import tensorrt_rtx_bindings as real

from tests.support.doubles.tensorrt_running import PLANS, Runtime
from tests.support.doubles.tensorrt_values import CURRENT, State, fallible, state

VERSIONS = ("10.9.0.34", "11.4.0.106")
GRAPHS: dict[int, str] = {}  # path of the graph, by the id of the network


class OnnxParser(real.OnnxParser):  # type: ignore[misc]
    def __init__(self, network: Any, logger: Any) -> None:
        super().__init__(network, logger)
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        GRAPHS[id(self._network)] = model
        return bool(super().parse_from_file(model))


class Builder(real.Builder):  # type: ignore[misc]
    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        state().keep_logger(logger)

    def create_optimization_profile(self) -> Any:
        self.profile = super().create_optimization_profile()
        return self.profile

    @fallible(None)
    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if not state().is_rtx:  # TensorRT 10 and 11 build for the GPU that is there
            config.num_compute_capabilities = 1
            config.set_compute_capability(real.ComputeCapability.SM86, 0)
        state().during_build()
        plan = super().build_serialized_network(network, config)
        if plan is None:
            return None
        inputs = [network.get_input(index).name for index in range(network.num_inputs)]
        shapes = {name: [tuple(dims) for dims in self.profile.get_shape(name)] for name in inputs}
        graph = onnx.load(GRAPHS[id(network)])
        state().built.append(graph.graph.name)
        PLANS[hashlib.sha256(plan).hexdigest()] = shapes, graph.SerializeToString()
        return plan


@contextmanager
def doubled(version: str = VERSIONS[0], name: str = "tensorrt") -> Iterator[State]:
    """Replace TensorRT and ``cuda.bindings.runtime`` by the doubles."""
    now = State(version, name != "tensorrt")
    CURRENT[:] = [now]
    tensorrt, cuda, bindings = ModuleType(name), ModuleType("cuda"), ModuleType("cuda.bindings")
    tensorrt.__dict__.update(vars(real), __name__=name, __version__=version)
    tensorrt.__dict__.update(OnnxParser=OnnxParser, Builder=Builder, Runtime=Runtime)
    bindings.runtime = now.cuda.module()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for module in (tensorrt, cuda, bindings, bindings.runtime):
            module.__spec__ = ModuleSpec(module.__name__, None)  # torch looks whether there is a tensorrt
            patch.setitem(sys.modules, module.__name__, module)
        yield now


@contextmanager
def doubled_rtx(compute_capability: str = "8.6") -> Iterator[State]:
    """Replace the device of TensorRT-RTX by the doubles."""
    with doubled(real.__version__, "tensorrt_rtx") as now:
        major, minor = map(int, compute_capability.split("."))
        now.cuda.properties = replace(now.cuda.properties, major=major, minor=minor)
        yield now
