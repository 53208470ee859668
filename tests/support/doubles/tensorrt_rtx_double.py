"""A double of the device for TensorRT-RTX: its real parser and compiler, with engines that ONNX Runtime runs.

Only what needs a GPU is doubled: loading an engine, its contexts, and the cache of compiled kernels.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import onnx
import pytest
import tensorrt_rtx_bindings as real

from tests.support.doubles import tensorrt_running
from tests.support.doubles.cuda_values import RuleBroken
from tests.support.doubles.tensorrt_double import VERSIONS, doubled
from tests.support.doubles.tensorrt_values import ExecutionContextAllocationStrategy, State, state

PLANS: dict[str, tuple[dict[str, Any], bytes]] = {}  # profile and graph, by the digest of the real engine
GRAPHS: dict[int, str] = {}  # path of the graph, by the id of the network
KERNELS = b"double of compiled kernels of "


class OnnxParser(real.OnnxParser):  # type: ignore[misc]
    def __init__(self, network: Any, logger: Any) -> None:
        super().__init__(network, logger)
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        GRAPHS[id(self._network)] = model
        return bool(super().parse_from_file(model))


class Builder(real.Builder):  # type: ignore[misc]
    def create_optimization_profile(self) -> Any:
        self.profile = super().create_optimization_profile()
        return self.profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        plan = super().build_serialized_network(network, config)
        inputs = [network.get_input(index).name for index in range(network.num_inputs)]
        shapes = {name: [tuple(dims) for dims in self.profile.get_shape(name)] for name in inputs}
        graph = onnx.load(GRAPHS[id(network)])
        state().built.append(graph.graph.name)
        PLANS[hashlib.sha256(plan).hexdigest()] = shapes, graph.SerializeToString()
        return plan


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels = b""

    def deserialize(self, blob: bytes) -> bool:
        if fits := blob == KERNELS + state().version.encode():
            self._kernels = blob
        return fits

    def serialize(self) -> bytes:
        return KERNELS + state().version.encode()


class IRuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = real.DynamicShapesKernelSpecializationStrategy.LAZY
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = ExecutionContextAllocationStrategy[strategy.name]


class ICudaEngine(tensorrt_running.ICudaEngine):
    _types, _modes = real.DataType.__members__, real.TensorIOMode

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any) -> Any:
        if runtime_config._cache is None:
            raise RuleBroken("a context without a cache compiles its kernels in every process")
        return tensorrt_running.IExecutionContext(self, runtime_config._strategy)


class Runtime(tensorrt_running.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        found = PLANS.get(hashlib.sha256(serialized_engine).hexdigest())
        if found is None:
            raise RuleBroken("these bytes are no engine: the real one would run whatever they are")
        state().deserialized += 1
        return ICudaEngine({"profile": found[0], "detailed": True}, found[1])


@contextmanager
def doubled_rtx(compute_capability: str = "8.6") -> Iterator[State]:
    """Put the real TensorRT-RTX with the doubles of this module in its place, on a double of a GPU."""
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(vars(real), __name__="tensorrt_rtx", OnnxParser=OnnxParser, Builder=Builder, Runtime=Runtime)
    with doubled(VERSIONS[1]) as now, pytest.MonkeyPatch.context() as patch:
        now.version = real.__version__
        major, minor = map(int, compute_capability.split("."))
        now.cuda.properties = replace(now.cuda.properties, major=major, minor=minor)
        patch.setitem(sys.modules, "tensorrt_rtx", module)
        yield now
