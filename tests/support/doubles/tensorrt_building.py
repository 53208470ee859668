"""Parser and builder of the double of TensorRT. A plan is the graph and its build options."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import onnx

from tests.support.doubles.cuda_values import RuleBroken
from tests.support.doubles.tensorrt_values import (
    BuilderFlag,
    Dims,
    IHostMemory,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    fallible,
    state,
)

MAGIC = b"double of a plan\n"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Dims, ...]] = {}

    @fallible(ValueError)
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(isinstance(dims, Dims) for dims in (min, opt, max)):
            raise TypeError("set_shape(): incompatible function arguments")
        self.shapes[input] = (min, opt, max)

    @fallible(False)
    def __bool__(self) -> bool:
        sizes = [bounds for shapes in self.shapes.values() for bounds in zip(*shapes, strict=True)]
        return all(low <= best <= high for low, best, high in sizes)


@dataclass
class ITimingCache:
    version: str
    entries: dict[str, Any]

    @fallible(None)
    def serialize(self) -> Any:
        return IHostMemory(json.dumps(vars(self)).encode())


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
        if "IBuilderConfig.builder_optimization_level" not in state().faults:
            self._level = arg1

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

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        if not serialized_timing_cache:
            return ITimingCache(state().version, {})
        try:
            return ITimingCache(**json.loads(serialized_timing_cache))
        except ValueError:
            return state().refuse("the timing cache is corrupt")

    @fallible(False)
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.version != state().version and not ignore_mismatch:
            return state().refuse("the timing cache was made by another version", False)
        self.cache = cache
        return True


class INetworkDefinition:
    model: onnx.ModelProto


class Builder:
    @fallible(TypeError)
    def __init__(self, logger: Any) -> None:
        state().keep_logger(logger)

    def create_network(self, flags: int = 0) -> Any:
        typed = 1 << NetworkDefinitionCreationFlag().STRONGLY_TYPED
        if flags & typed == 0 and state().major >= 11:
            return state().refuse("networks that are not strongly typed were removed")
        if flags != typed:
            raise RuleBroken("a weakly typed network, whose precision would be anybody's guess, or other flags")
        return INetworkDefinition()

    def create_builder_config(self) -> Any:
        return IBuilderConfig()

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
                    return state().refuse(f"the profile of {spec.name} does not fit the network")
        if not _shown(config.progress_monitor):
            return state().refuse("the build was cancelled")
        state().during_build()
        state().built.append(model.graph.name)
        graph = model.SerializeToString()
        config.cache.entries[hashlib.sha256(graph).hexdigest()[:8]] = 1
        header = {
            "version": state().version,
            "profile": profile.shapes,
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + graph)


class ParserError:
    def __init__(self, **answers: Any) -> None:
        for name, answer in answers.items():
            setattr(self, name, lambda answer=answer: answer)


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @fallible(False)
    def parse_from_file(self, model: str) -> bool:
        self._network.model = onnx.load(model)
        known = {schema.name for schema in onnx.defs.get_all_schemas()}
        for index, node in enumerate(self._network.model.graph.node):
            if node.domain not in ("", "ai.onnx") or node.op_type not in known:
                desc = f"no importer registered for op: {node.op_type}. Attempting to import as plugin."
                error = ParserError(desc=desc, node=index, node_name=node.name, node_operator=node.op_type)
                self._errors.append(error)
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


def _shown(monitor: Any) -> bool:
    """Report two nested phases; return ``False`` if the monitor requests a stop."""
    monitor.phase_start("Building Engine", "", 2)
    monitor.phase_start("Timing Runners", "Building Engine", 3)
    steps = [monitor.step_complete("Timing Runners", step) for step in range(3)]
    monitor.phase_finish("Timing Runners")
    steps.append(monitor.step_complete("Building Engine", 1))
    monitor.phase_finish("Building Engine")
    return all(steps)
