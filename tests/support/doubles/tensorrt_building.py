"""The half of the double of TensorRT that parses and builds. A plan is the graph itself and what it was built with."""

import hashlib
import json
from typing import Any

import onnx

from tests.support.doubles.cuda_values import RuleBroken
from tests.support.doubles.tensorrt_state import fallible, keep_logger, state
from tests.support.doubles.tensorrt_values import (
    BuilderFlag,
    Dims,
    IHostMemory,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
)

MAGIC = b"double of a plan\n"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    @fallible(ValueError)
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(isinstance(dims, Dims) for dims in (min, opt, max)):
            raise TypeError("set_shape(): incompatible function arguments")
        self.shapes[input] = tuple(tuple(dims[:]) for dims in (min, opt, max))

    @fallible(False)
    def __bool__(self) -> bool:
        return all(
            low <= best <= high for shapes in self.shapes.values() for low, best, high in zip(*shapes, strict=True)
        )


class ITimingCache:
    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    @fallible(None)
    def serialize(self) -> Any:
        return IHostMemory(json.dumps({"version": state().version, "entries": self.entries}).encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self._level, self._pools = 3, {MemoryPoolType.WORKSPACE: 24 << 30}
        self._flags = {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, arg1: int) -> None:
        if "IBuilderConfig.builder_optimization_level" in state().faults:
            return
        self._level = arg1

    @fallible(None)
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools[pool]

    @fallible(None)
    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    @fallible(-1)
    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @fallible(None)
    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        if not serialized_timing_cache:
            return ITimingCache({})
        try:
            document = json.loads(bytes(serialized_timing_cache))
        except ValueError:
            state().refuse("the timing cache is corrupt")
            return None
        cache = ITimingCache(document["entries"])
        cache.version = document["version"]  # type: ignore[attr-defined]
        return cache

    @fallible(False)
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if getattr(cache, "version", state().version) != state().version and not ignore_mismatch:
            state().refuse("the timing cache was made by another version")
            return False
        self.cache = cache
        return True


class INetworkDefinition:
    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None


class Builder:
    @fallible(TypeError)
    def __init__(self, logger: Any) -> None:
        keep_logger(logger)

    @fallible(None)
    def create_network(self, flags: int = 0) -> Any:
        typed = NetworkDefinitionCreationFlag().STRONGLY_TYPED
        if not flags & (1 << typed):
            if state().major >= 11:
                state().refuse("networks that are not strongly typed were removed")
                return None
            raise RuleBroken("a weakly typed network: its precision would be anybody's guess")
        if flags != 1 << typed:
            raise RuleBroken("flags besides STRONGLY_TYPED")
        return INetworkDefinition()

    @fallible(None)
    def create_builder_config(self) -> Any:
        return IBuilderConfig()

    @fallible(None)
    def create_optimization_profile(self) -> Any:
        return IOptimizationProfile()

    @fallible(None)
    def build_serialized_network(self, network: Any, config: Any) -> Any:
        model = network.model
        (profile,) = config.profiles
        for spec in model.graph.input:
            low, _, high = profile.shapes.get(spec.name, ((), (), ()))
            for size, dim in zip(zip(low, high, strict=True), spec.type.tensor_type.shape.dim, strict=True):
                if dim.HasField("dim_value") and size != (dim.dim_value,) * 2:
                    state().refuse(f"the profile of {spec.name} does not fit the network")
                    return None
        if not _show_progress(config.progress_monitor):
            state().refuse("the build was cancelled")
            return None
        state().during_build()
        state().built.append(model.graph.name)
        graph = model.SerializeToString()
        if config.cache is not None:
            config.cache.entries[hashlib.sha256(graph).hexdigest()[:8]] = 1
        header = {
            "version": state().version,
            "profile": profile.shapes,
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
            "tf32": config.get_flag(BuilderFlag.TF32),
            "level": config.builder_optimization_level,
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + graph)


class ParserError:
    def __init__(self, desc: str, node: int, node_name: str, node_operator: str) -> None:
        self._desc, self._node, self._name, self._operator = desc, node, node_name, node_operator

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator


class OnnxParser:
    @fallible(TypeError)
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @fallible(False)
    def parse_from_file(self, model: str) -> bool:
        try:
            proto = onnx.load(model)
            known = {schema.name for schema in onnx.defs.get_all_schemas()}
        except Exception as error:
            self._errors.append(ParserError(f"cannot read the model: {error}", -1, "", ""))
            return False
        for index, node in enumerate(proto.graph.node):
            if node.domain not in ("", "ai.onnx") or node.op_type not in known:
                message = f"no importer registered for op: {node.op_type}. Attempting to import as plugin."
                self._errors.append(ParserError(message, index, node.name, node.op_type))
        self._network.model = proto
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


def _show_progress(monitor: Any) -> bool:
    """Two nested phases; ``False`` once the monitor wants to stop."""
    if monitor is None:
        return True
    monitor.phase_start("Building Engine", "", 2)
    going = monitor.step_complete("Building Engine", 0)
    monitor.phase_start("Timing Runners", "Building Engine", 3)
    for step in range(3):
        going = going and monitor.step_complete("Timing Runners", step)
    monitor.phase_finish("Timing Runners")
    going = going and monitor.step_complete("Building Engine", 1)
    monitor.phase_finish("Building Engine")
    return bool(going)
