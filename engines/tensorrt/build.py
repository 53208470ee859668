"""Builds the strongly typed TensorRT engine of one stage from its graph, with TensorRT 10 or 11."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, SupportsInt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, StageContract
from ..errors import RSRefSegError
from ..system.progress import ProgressLine
from .errors import TrtCalls, host_bytes, parser_errors, unparsable
from .inspect import check_precision
from .library import Library, Platform
from .records import BuildOptions
from .timing import attach, keep

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger(__name__)
_REPORT = "run `rsrefseg doctor`, close other programs on the GPU and build again"


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A built engine that is not on disk yet.

    Attributes:
        data: the serialised engine.
        layers: JSON of the engine inspector.
        heavy_layers: precision of the layers that multiply, from ``layers``.
        activation_bytes: GPU memory one run needs besides weights, inputs and outputs.
    """

    data: bytes
    layers: str
    heavy_layers: str
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class GpuCompiler:
    """Builds engines with TensorRT 10 or 11 for the GPU of this machine."""

    library: Library

    @property
    def platform(self) -> Platform:
        """What the engines depend on besides graph and options."""
        return self.library.platform

    def build(self, bundle: Bundle, stage: Stage, options: BuildOptions, progress: ProgressLine) -> BuiltEngine:
        """Build the engine of a stage; see ``build_engine``."""
        return build_engine(self.library, bundle, stage, options, progress)


def build_engine(
    library: Library, bundle: Bundle, stage: Stage, options: BuildOptions, progress: ProgressLine
) -> BuiltEngine:
    """Build the engine of a stage.

    Raises:
        BundleError: TensorRT cannot parse the graph.
        RSRefSegError: TensorRT cannot build the engine, or the engine has another precision than its graph.
    """
    import tensorrt as trt

    calls = TrtCalls(stage, library.error_log)
    version = library.platform.tensorrt
    record = bundle.manifest.stages[stage]
    graph = bundle.graph_path(stage)
    builder = calls.require(lambda: trt.Builder(library.logger), "start its builder", _REPORT)
    # By name: the bit is 1 in TensorRT 10 and 0 in TensorRT 11, where 1 has another meaning.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = calls.require(lambda: builder.create_network(flags), "create a strongly typed network", _REPORT)
    parser = calls.require(lambda: trt.OnnxParser(network, library.logger), "start its ONNX parser", _REPORT)
    library.error_log.clear()
    # By path, not by bytes, so that the parser finds the weights beside the graph.
    if not parser.parse_from_file(str(graph)):
        errors = parser_errors(parser)
        for line in errors:
            progress.say(f"{stage}: {line}")
        raise unparsable(stage, str(graph), version, errors, library.error_log)
    config = calls.require(builder.create_builder_config, "create a build configuration", _REPORT)
    _set_options(config, options, calls)
    _add_profile(builder, config, record.contract, calls)
    timings = attach(config, library.platform, calls, progress.say)
    interrupted = threading.Event()
    config.progress_monitor = _monitor(progress, interrupted)
    # In a thread, because Ctrl-C raises KeyboardInterrupt in the main thread. If it were raised in a callback of
    # TensorRT, it would be lost or cancel the build.
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(builder.build_serialized_network, network, config)
        try:
            plan = calls.require(
                job.result, "build the engine", "close other programs on the GPU, or change --workspace-mib"
            )
        except KeyboardInterrupt:
            interrupted.set()
            progress.say("stopping at TensorRT's next step")
            raise
    data = host_bytes(plan)
    try:
        keep(timings, library.platform, calls)
    except RSRefSegError as error:  # the engine itself is complete
        progress.say(f"the timings of this build are not kept: {error}")
    engine = load_engine(library, stage, data)
    _check_signature(engine, record.contract, version)
    layers = _inspect(engine, calls)
    heavy_layers, note = check_precision(stage, record.precision, layers, version)
    if note is not None:
        progress.say(note)
    return BuiltEngine(data, layers, heavy_layers, int(engine.device_memory_size_v2))


def load_engine(library: Library, stage: Stage, data: bytes) -> "trt.ICudaEngine":
    """Deserialise an engine. Its bytes are native code: pass only engines that this user built.

    Raises:
        RSRefSegError: TensorRT rejects the engine.
    """
    calls = TrtCalls(stage, library.error_log)
    runtime = calls.require(library.runtime, "start its runtime", _REPORT)
    return calls.require(
        lambda: runtime.deserialize_cuda_engine(data), "load the engine", "build it again: `rsrefseg build --force`"
    )


def _check_signature(engine: "trt.ICudaEngine", contract: StageContract, version: str) -> None:
    """Check that inputs and outputs of an engine match its contract.

    Raises:
        RSRefSegError: they differ; the message names both.
    """
    import tensorrt as trt

    names = {
        trt.DataType.UINT8: "uint8",
        trt.DataType.INT64: "int64",
        trt.DataType.BOOL: "bool",
        trt.DataType.HALF: "float16",
        trt.DataType.FLOAT: "float32",
    }
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        side = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype = engine.get_tensor_dtype(name)
        found[name] = f"{side} {names.get(dtype, str(dtype))}"
    wanted = {spec.name: f"input {spec.dtype}" for spec in contract.inputs}
    wanted |= {spec.name: f"output {spec.dtype}" for spec in contract.outputs}
    if found != wanted:
        raise RSRefSegError(
            f"stage '{contract.stage}': the engine of TensorRT {version} has {found}, its contract says {wanted}:"
            " export the bundle again"
        )


def _set_options(config: "trt.IBuilderConfig", options: BuildOptions, calls: TrtCalls) -> None:
    import tensorrt as trt

    workspace, size = trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20
    what = f"limit the workspace to {options.workspace_mib} MiB"
    hint = "change --workspace-mib"
    calls.run(lambda: config.set_memory_pool_limit(workspace, size), what, hint)
    calls.require_true(lambda: 0 < config.get_memory_pool_limit(workspace) <= size, what, hint)
    level, what = options.optimization_level, f"search at optimisation level {options.optimization_level}"
    config.builder_optimization_level = level
    calls.require_true(lambda: config.builder_optimization_level == level, what, "change --optimization-level")
    # FP32 layers must compute in FP32, including those that an FP16 graph deliberately keeps in it.
    calls.run(lambda: config.clear_flag(trt.BuilderFlag.TF32), "switch TF32 off", _REPORT)
    calls.require_true(lambda: not config.get_flag(trt.BuilderFlag.TF32), "switch TF32 off", _REPORT)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _add_profile(
    builder: "trt.Builder", config: "trt.IBuilderConfig", contract: StageContract, calls: TrtCalls
) -> None:
    """Add one optimisation profile with the contract's bounds."""
    import tensorrt as trt

    export_again = "export the bundle again"
    profile = calls.require(builder.create_optimization_profile, "create an optimisation profile", _REPORT)
    for spec in contract.inputs:
        low, best, high = (
            trt.Dims([*spec.sized(**{dim.name: getattr(dim, bound) for dim in spec.dims})])
            for bound in ("min", "opt", "max")
        )
        set_shape = partial(profile.set_shape, spec.name, low, best, high)
        calls.run(set_shape, f"accept the shapes {spec.shape_text} of '{spec.name}'", export_again)
    calls.require_true(lambda: bool(profile), "use the contract's shapes as a profile", export_again)
    calls.require_true(
        lambda: config.add_optimization_profile(profile) >= 0, "add the optimisation profile", export_again
    )


def _inspect(engine: "trt.ICudaEngine", calls: TrtCalls) -> str:
    import tensorrt as trt

    inspector = calls.require(engine.create_engine_inspector, "inspect the engine", _REPORT)
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not information:
        raise calls.failure("report the engine's layers", _REPORT)
    return information


def _monitor(progress: ProgressLine, interrupted: threading.Event) -> "trt.IProgressMonitor":
    """Return a monitor that shows the progress of a build's outermost phase, with the current phase as a note.

    Once ``interrupted`` is set, the monitor stops the build. An exception would stop it as well, so none escapes.
    """
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            self._phases[phase_name] = [0, int(num_steps)]
            self._show()

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][0] = int(step) + 1
            self._show()
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _show(self) -> None:
            phases = list(self._phases.items())  # TensorRT calls from several threads
            try:
                if phases:
                    done, total = phases[0][1]
                    # The engine is serialised after the last step.
                    progress.update(max(0, min(done, total - 1)), total, note=phases[-1][0])
            except Exception as error:
                _LOG.debug("progress cannot be shown: %s", error)

    return Monitor()
