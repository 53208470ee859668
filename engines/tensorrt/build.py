"""Builds the strongly typed engine of one stage from its graph, with TensorRT 10, 11 or RTX."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsInt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, StageContract
from ..bundle.manifest import StageRecord
from ..errors import RSRefSegError
from ..system.progress import ProgressLine
from .attention import Attention, find_attentions, fused_nodes
from .errors import TrtCalls, host_bytes, parser_errors, unparsable
from .inspect import check_precision
from .library import Library, Platform, named_platform
from .records import BuildOptions
from .timing import attach, keep

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger(__name__)
_REPORT = "run `rsrefseg doctor`, close other programs on the GPU and build again"
_EXPORT_AGAIN = "export the bundle again"


@dataclass(frozen=True, slots=True)
class ParsedStage:
    """A parsed graph: the builder, its strongly typed network, the network's attentions, the parser's warnings."""

    builder: "trt.Builder"
    network: "trt.INetworkDefinition"
    attentions: tuple[Attention, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A built engine that is not on disk yet.

    Attributes:
        data: the serialised engine.
        computes_in: precision of the layers that multiply; of TensorRT-RTX the graph's, with the fused attentions.
        layers: JSON of the engine inspector; empty if there is no GPU to load the engine on.
        activation_bytes: GPU memory one run needs besides weights, inputs and outputs; 0 if not known before loading.
    """

    data: bytes
    computes_in: str
    layers: str = ""
    activation_bytes: int = 0


class Compiler:
    """Builds engines for one platform.

    Args:
        library: the kind of TensorRT.
        platform: what the engines depend on besides graph and options.
        gpus: GPU classes such as ``sm86`` for TensorRT-RTX, which needs no GPU: one engine serves them all. Empty for
            TensorRT 10 and 11, which build for the GPU of this machine.
    """

    def __init__(self, library: Library, platform: Platform, gpus: tuple[str, ...] = ()) -> None:
        self.library, self.platform, self.gpus = library, platform, gpus

    @classmethod
    def for_gpus(cls, library: Library, gpus: tuple[str, ...]) -> "Compiler":
        """Return the compiler of TensorRT-RTX for named GPU classes."""
        return cls(library, named_platform(library, gpus), gpus)

    def parse(self, bundle: Bundle, stage: Stage, progress: ProgressLine) -> ParsedStage:
        """Parse the graph of a stage, and show every error of the parser.

        Raises:
            BundleError: a file of the bundle is missing or changed, or the graph cannot be parsed; the message names
                the node.
        """
        library, calls, graph = self.library, TrtCalls(stage, self.library.log), bundle.graph_path(stage)
        if not TYPE_CHECKING:
            trt = library.module
        builder = calls.require(lambda: trt.Builder(library.logger), "start its builder", _REPORT)
        # By name: the bit is 1 in TensorRT 10 and 0 in TensorRT 11, where 1 has another meaning.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = calls.require(lambda: builder.create_network(flags), "create a strongly typed network", _REPORT)
        parser = calls.require(lambda: trt.OnnxParser(network, library.logger), "start its ONNX parser", _REPORT)
        library.log.clear()
        # By path, not by bytes, so that the parser finds the weights beside the graph.
        if not parser.parse_from_file(str(graph)):
            errors = parser_errors(parser)
            for line in errors:
                progress.say(f"{stage}: {line}")
            raise unparsable(stage, str(graph), str(library), errors, library.log)
        attentions = find_attentions(network, trt) if library.is_rtx else ()
        return ParsedStage(builder, network, attentions, library.log.take_warnings())

    def compile(
        self, parsed: ParsedStage, contract: StageContract, options: BuildOptions, progress: ProgressLine
    ) -> bytes:
        """Build and serialise the engine of a parsed graph, which can be used once.

        Raises:
            RSRefSegError: TensorRT rejects an option or cannot build the engine; the message quotes it.
        """
        library, calls = self.library, TrtCalls(contract.stage, self.library.log)
        config = calls.require(parsed.builder.create_builder_config, "create a build configuration", _REPORT)
        self._set_options(calls, config, options)
        self._add_profile(calls, parsed.builder, config, contract)
        # TensorRT-RTX measures no timings, and with a cache for them it needs a GPU.
        timings = None if library.is_rtx else attach(config, self.platform, calls, progress.say)
        interrupted = threading.Event()
        config.progress_monitor = _monitor(library, progress, interrupted)
        hint = (
            "name other GPUs, or export the bundle again"
            if self.gpus
            else "close other programs on the GPU, or change --workspace-mib"
        )
        # In a thread, because Ctrl-C raises KeyboardInterrupt in the main thread. If it were raised in a callback of
        # TensorRT, it would be lost or cancel the build.
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(parsed.builder.build_serialized_network, parsed.network, config)
            try:
                plan = calls.require(job.result, "build the engine", hint)
            except KeyboardInterrupt:
                interrupted.set()
                progress.say("stopping at TensorRT's next step")
                raise
        data = host_bytes(plan)
        if timings is not None:
            try:
                keep(timings, self.platform, calls)
            except RSRefSegError as error:  # the engine itself is complete
                progress.say(f"the timings of this build are not kept: {error}")
        return data

    def build(self, bundle: Bundle, stage: Stage, options: BuildOptions, progress: ProgressLine) -> BuiltEngine:
        """Build the engine of a stage and check its precision.

        Raises:
            BundleError: TensorRT cannot parse the graph.
            RSRefSegError: TensorRT cannot build the engine, or the engine has another precision than its graph.
        """
        record, parsed = bundle.manifest.stages[stage], self.parse(bundle, stage, progress)
        data = self.compile(parsed, record.contract, options, progress)
        if self.library.is_rtx:
            fused = fused_nodes(data)
            count = sum(attention.node in fused for attention in parsed.attentions)
            computes_in = f"{record.precision}, {count} of {len(parsed.attentions)} attentions fused"
            return BuiltEngine(data, computes_in)
        engine = load_engine(self.library, stage, data)
        computes_in, layers = prove_engine(self.library, engine, record, progress.say)
        return BuiltEngine(data, computes_in, layers, int(engine.device_memory_size_v2))

    def _set_options(self, calls: TrtCalls, config: "trt.IBuilderConfig", options: BuildOptions) -> None:
        if not TYPE_CHECKING:
            trt = self.library.module
        # FP32 layers must compute in FP32, including those that an FP16 graph deliberately keeps in it.
        calls.run(lambda: config.clear_flag(trt.BuilderFlag.TF32), "switch TF32 off", _REPORT)
        calls.require_true(lambda: not config.get_flag(trt.BuilderFlag.TF32), "switch TF32 off", _REPORT)
        config.profiling_verbosity = (
            trt.ProfilingVerbosity.DETAILED
        )  # the inspector shows types, and engines name nodes
        if self.gpus:
            _set_gpus(calls, config, self.library.module, self.gpus)
            return  # the other options are for a search on the GPU
        workspace, size = trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20
        what = f"limit the workspace to {options.workspace_mib} MiB"
        hint = "change --workspace-mib"
        calls.run(lambda: config.set_memory_pool_limit(workspace, size), what, hint)
        calls.require_true(lambda: 0 < config.get_memory_pool_limit(workspace) <= size, what, hint)
        level, what = options.optimization_level, f"search at optimisation level {options.optimization_level}"
        config.builder_optimization_level = level
        calls.require_true(lambda: config.builder_optimization_level == level, what, "change --optimization-level")

    def _add_profile(
        self, calls: TrtCalls, builder: "trt.Builder", config: "trt.IBuilderConfig", contract: StageContract
    ) -> None:
        """Add one optimisation profile with the contract's bounds."""
        if not TYPE_CHECKING:
            trt = self.library.module
        profile = calls.require(builder.create_optimization_profile, "create an optimisation profile", _REPORT)
        for spec in contract.inputs:
            low, best, high = (
                trt.Dims([*spec.sized(**{dim.name: getattr(dim, bound) for dim in spec.dims})])
                for bound in ("min", "opt", "max")
            )
            set_shape = partial(profile.set_shape, spec.name, low, best, high)
            calls.run(set_shape, f"accept the shapes {spec.shape_text} of '{spec.name}'", _EXPORT_AGAIN)
        calls.require_true(lambda: bool(profile), "use the contract's shapes as a profile", _EXPORT_AGAIN)
        calls.require_true(
            lambda: config.add_optimization_profile(profile) >= 0, "add the optimisation profile", _EXPORT_AGAIN
        )


def load_engine(library: Library, stage: Stage, data: bytes) -> "trt.ICudaEngine":
    """Deserialise an engine. Its bytes are native code: pass only engines that this user built or named.

    Raises:
        RSRefSegError: TensorRT rejects the engine.
    """
    calls = TrtCalls(stage, library.log)
    runtime = calls.require(library.runtime, "start its runtime", _REPORT)
    return calls.require(
        lambda: runtime.deserialize_cuda_engine(data), "load the engine", "build it again: `rsrefseg build --force`"
    )


def prove_engine(
    library: Library, engine: "trt.ICudaEngine", record: StageRecord, say: Callable[[str], None]
) -> tuple[str, str]:
    """Check that a loaded engine has the signature of its contract and the precision of its graph.

    Args:
        library: the kind of TensorRT.
        engine: the loaded engine.
        record: record of the stage's graph.
        say: shows a note if the inspector does not report the precision.

    Returns:
        The precision of the layers that multiply, and JSON of the engine inspector.

    Raises:
        RSRefSegError: the engine has another signature or precision.
    """
    contract, calls = record.contract, TrtCalls(record.contract.stage, library.log)
    _check_signature(library, engine, contract)
    if not TYPE_CHECKING:
        trt = library.module
    inspector = calls.require(engine.create_engine_inspector, "inspect the engine", _REPORT)
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not layers:
        raise calls.failure("report the engine's layers", _REPORT)
    computes_in, note = check_precision(contract.stage, record.precision, layers, str(library))
    if note is not None:
        say(note)
    return computes_in, layers


def _set_gpus(calls: TrtCalls, config: Any, trt: Any, gpus: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(gpus)
    for index, gpu in enumerate(gpus):
        choose = partial(config.set_compute_capability, getattr(trt.ComputeCapability, gpu.upper()), index)
        calls.require_true(choose, f"compile for {gpu}", "name other GPUs")


def _check_signature(library: Library, engine: "trt.ICudaEngine", contract: StageContract) -> None:
    """Check that inputs and outputs of an engine match its contract.

    Raises:
        RSRefSegError: they differ; the message names both.
    """
    if not TYPE_CHECKING:
        trt = library.module
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
            f"stage '{contract.stage}': the engine of {library} has {found}, its contract says {wanted}:"
            f" {_EXPORT_AGAIN}"
        )


def _monitor(library: Library, progress: ProgressLine, interrupted: threading.Event) -> "trt.IProgressMonitor":
    """Return a monitor that shows the progress of a build's outermost phase, with the current phase as a note.

    Once ``interrupted`` is set, the monitor stops the build. An exception would stop it as well, so none escapes.
    """
    if not TYPE_CHECKING:
        trt = library.module

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
