"""Runtime of the double of TensorRT: runs engines with ONNX Runtime in the order of CUDA's streams."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx_bindings as real

from tests.support.doubles.cuda_values import Access, Operation, RuleBroken
from tests.support.doubles.tensorrt_values import fallible, state

PLANS: dict[str, tuple[dict[str, Any], bytes]] = {}  # profile and graph, by the digest of the real engine
KERNELS = b"double of compiled kernels of "
_DTYPES = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "float16": "HALF", "float32": "FLOAT"}
_HEAVY_OPERATORS = {"MatMul", "Gemm", "Conv", "Einsum"}


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
        self._strategy = real.ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class EngineInspector:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @fallible("")
    def get_engine_information(self, format: Any) -> str:
        return json.dumps({"Layers": list(self._engine._layers()), "Bindings": []})


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        state().keep_logger(logger)

    @fallible(None)
    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        found = PLANS.get(hashlib.sha256(serialized_engine).hexdigest())
        if found is None:
            raise RuleBroken("these bytes are no engine: the real one would run whatever they are")
        state().deserialized += 1
        return ICudaEngine(*found)


class ICudaEngine:
    def __init__(self, profile: dict[str, Any], graph: bytes) -> None:
        self.profile, self.model = profile, onnx.load_from_string(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        initializers = {weight.name for weight in self.model.graph.initializer}
        self.inputs = [spec for spec in self.model.graph.input if spec.name not in initializers]
        self.tensors = {spec.name: spec for spec in (*self.inputs, *self.model.graph.output)}
        self.contexts = 0
        state().alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return 1000 + 64 * sum(int(np.prod(high)) for _, _, high in self.profile.values())

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if self.tensors[name] in self.inputs else real.TensorIOMode.OUTPUT

    @fallible(real.DataType.HALF)
    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(real.DataType, _DTYPES[str(self._dtype(name))])

    def create_engine_inspector(self) -> Any:
        return EngineInspector(self)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> Any:
        if state().is_rtx:
            if how._cache is None:
                raise RuleBroken("a context without a cache compiles its kernels in every process")
            how = how._strategy
        return IExecutionContext(self, how)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].type.tensor_type.elem_type))

    def _layers(self) -> Iterator[Any]:
        """Yield layers as the inspector of this version writes them."""
        typed = onnx.shape_inference.infer_shapes(self.model)
        specs = (*typed.graph.value_info, *self.tensors.values())
        found = {spec.name: spec.type.tensor_type.elem_type for spec in specs}
        found |= {weight.name: weight.data_type for weight in typed.graph.initializer}
        words = (
            ("Row major linear FP32", "Row major linear FP16 format")
            if state().version.startswith("10.")
            else ("Float", "Half")
        )
        for node in self.model.graph.node:
            half = found.get(node.input[0]) == onnx.TensorProto.FLOAT16
            tensors = [{"Name": name, "Format/Datatype": words[half]} for name in (*node.input, *node.output)]
            layer = {"Name": node.name or f"{node.op_type}_of_{node.output[0]}", "Inputs": tensors, "Outputs": tensors}
            yield layer | {"LayerType": "gemm" if node.op_type in _HEAVY_OPERATORS else "kgen"}


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: Any) -> None:
        self._engine = engine
        self._user_managed = strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED
        self._profile = 0 if engine.contexts == 0 else -1
        engine.contexts += 1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._changes = 0

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    @fallible(None)  # it returns nothing either way: only the logger gets the error
    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256 or size < self._engine.device_memory_size_v2:
            state().refuse("the activation memory is not aligned or too small")
        else:
            self._memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profile[name]
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if self._profile < 0 or not fits:
            return state().refuse(f"{name}: {list(shape)} is outside of the profile {low} to {high}", False)
        self._changes += self._shapes.get(name) != tuple(shape)
        self._shapes[name] = tuple(shape)
        return True

    @fallible(["planted"])
    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._engine.inputs if spec.name not in self._shapes]

    @fallible((7,))
    def get_tensor_shape(self, name: str) -> Any:
        sizes: dict[str, int] = {}
        for spec in self._engine.inputs:
            for dim, size in zip(spec.type.tensor_type.shape.dim, self._shapes.get(spec.name, ()), strict=False):
                sizes[dim.dim_param] = size
        dims = self._engine.tensors[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, -1) for dim in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.tensors:
            return state().refuse(f"there is no tensor {name}", False)
        self._changes += self._addresses.get(name) != memory
        self._addresses[name] = memory
        return True

    @fallible(False)
    def execute_async_v3(self, stream_handle: int) -> bool:
        if missing := [name for name in self._engine.tensors if name not in self._addresses]:
            return state().refuse(f"no address is set for {missing}", False)
        if self._user_managed and self._memory is None:
            return state().refuse("no activation memory is set", False)
        if stream_handle == 0:
            raise RuleBroken("ran on the default stream")
        engine, addresses, changes = self._engine, dict(self._addresses), self._changes
        shapes = {name: self.get_tensor_shape(name) for name in engine.tensors}
        sizes = {name: int(np.prod(shape)) * engine._dtype(name).itemsize for name, shape in shapes.items()}
        inputs = [spec.name for spec in engine.inputs]
        outputs = [name for name in engine.tensors if name not in inputs]

        def on_gpu(name: str) -> np.ndarray:
            view = state().cuda.view(addresses[name], sizes[name])
            return view.view(engine._dtype(name)).reshape(shapes[name])

        def run() -> None:
            feeds = {name: on_gpu(name).copy() for name in inputs}
            if self._memory is not None:
                state().cuda.view(*self._memory)[:] = 0xAB
            for name, result in zip(outputs, engine.session.run(outputs, feeds), strict=True):
                on_gpu(name)[...] = result

        def unchanged() -> None:
            if self._changes != changes:
                raise RuleBroken("a graph was launched whose context has other shapes or addresses by now")

        accesses = [Access(addresses[n], addresses[n] + sizes[n], n in outputs) for n in engine.tensors]
        if self._memory is not None:
            accesses.append(Access(self._memory[0], sum(self._memory), True))
        state().cuda.give(stream_handle, Operation(engine.model.graph.name, run, tuple(accesses), unchanged))
        return True
