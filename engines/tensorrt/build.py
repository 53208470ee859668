"""Builds the strongly typed engine of one stage from its graph, with TensorRT 10, 11 or RTX."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from ..bundle.contracts import Stage, StageContract
from ..bundle.manifest import StageRecord
from ..engine import check_signature
from ..errors import BadInputError
from ..system.files import cache_folder
from ..system.progress import ProgressLine
from .attention import find_attentions, fused_nodes
from .inspect import check_precision
from .library import Library, Platform, named_platform, require

if TYPE_CHECKING:
    import tensorrt as trt

_BOUNDS = ("min", "opt", "max")
_REPORT = "run `rsrefseg doctor`, close other programs on the GPU and build again"


class BuildOptions(Struct, frozen=True):
    """The options of a build. Strong typing is always on and TF32 always off.

    Attributes:
        workspace_mib: scratch memory that a layer may use on the GPU, MiB.
        optimization_level: how long TensorRT searches for kernels, 0 (shortest) to 5.

    Raises:
        BadInputError: an option is out of range.
    """

    workspace_mib: int = 4096
    optimization_level: int = 3

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise BadInputError(f"the workspace must be at least 1 MiB, got {self.workspace_mib}")
        if not 0 <= self.optimization_level <= 5:
            raise BadInputError(f"the optimisation level must be 0 to 5, got {self.optimization_level}")


class BuiltEngine(NamedTuple):
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

    def parse(self, stage: Stage, graph: Path) -> tuple[Any, ...]:
        """Parse a graph and return its builder, its strongly typed network and its parser.

        Raises:
            RSRefSegError: TensorRT cannot parse the graph; the message names the node.
        """
        hint = (
            "export the bundle with this release and --target tensorrt, or install a TensorRT that knows the operator"
        )
        with self.library.step(stage, f"parse '{graph}'", hint):
            parsed: tuple[Any, ...] = self.library.loaders["network_from_onnx_path"](str(graph), strongly_typed=True)
            return parsed

    def compile(
        self, parsed: tuple[Any, ...], contract: StageContract, options: BuildOptions, progress: ProgressLine
    ) -> bytes:
        """Build and serialise the engine of a parsed graph, which can be used once.

        Raises:
            RSRefSegError: TensorRT rejects an option or cannot build the engine; the message quotes it.
        """
        library, loaders, module = self.library, self.library.loaders, self.library.module
        profile, interrupted = loaders["Profile"](), threading.Event()
        for spec in contract.inputs:
            shapes = (spec.sized(**{dim.name: getattr(dim, bound) for dim in spec.dims}) for bound in _BOUNDS)
            profile.add(spec.name, *shapes)
        common = {"profiles": [profile], "progress_monitor": _monitor(module, progress, interrupted)}
        timings = None
        if self.gpus:
            named = [(int(gpu[2:-1]), int(gpu[-1])) for gpu in self.gpus]
            configure = loaders["CreateConfigRTX"](compute_capabilities=named, **common)
        else:
            path = cache_folder() / "timing" / f"{self.platform.file_name}.cache"
            path.parent.mkdir(parents=True, exist_ok=True)
            timings = str(path)
            configure = loaders["CreateConfig"](
                memory_pool_limits={module.MemoryPoolType.WORKSPACE: options.workspace_mib << 20},
                builder_optimization_level=options.optimization_level,
                load_timing_cache=timings,
                **common,
            )

        def in_full_precision(builder: Any, network: Any, config: Any) -> None:
            config.clear_flag(module.BuilderFlag.TF32)  # set by default, also for what an FP16 graph keeps in FP32
            require(not config.get_flag(module.BuilderFlag.TF32))

        configure = loaders["PostprocessConfig"](configure, in_full_precision)
        hint = "name other GPUs, or export the bundle again" if self.gpus else f"change --workspace-mib, or {_REPORT}"
        # In a thread, because Ctrl-C in the main thread would be lost in a callback of TensorRT.
        with library.step(contract.stage, "build the engine", hint), ThreadPoolExecutor(1) as pool:
            job = pool.submit(loaders["engine_bytes_from_network"], parsed, configure, save_timing_cache=timings)
            try:
                return bytes(job.result())
            except KeyboardInterrupt:
                interrupted.set()
                progress.say("stopping at TensorRT's next step")
                raise

    def build(self, graph: Path, record: StageRecord, options: BuildOptions, progress: ProgressLine) -> BuiltEngine:
        """Build the engine of a graph and check its precision.

        Raises:
            RSRefSegError: TensorRT cannot parse the graph or build the engine, or the engine has another precision.
        """
        contract = record.contract
        parsed = self.parse(contract.stage, graph)
        attentions = find_attentions(parsed[1]) if self.gpus else ()
        data = self.compile(parsed, contract, options, progress)
        if self.gpus:
            fused = fused_nodes(data)
            count = sum(attention.node in fused for attention in attentions)
            return BuiltEngine(data, f"{record.precision}, {count} of {len(attentions)} attentions fused")
        engine = load_engine(self.library, contract.stage, data)
        computes_in, layers = prove_engine(self.library, engine, record, progress.say)
        return BuiltEngine(data, computes_in, layers, int(engine.device_memory_size_v2))


def load_engine(library: Library, stage: Stage, data: bytes) -> "trt.ICudaEngine":
    """Deserialise an engine. Its bytes are native code: pass only engines that this user built or named.

    Raises:
        RSRefSegError: TensorRT rejects the engine.
    """
    with library.step(stage, "load the engine", "build it again: `rsrefseg build --force`"):
        engine: trt.ICudaEngine = library.loaders["engine_from_bytes"](data, runtime=library.runtime)
        return engine


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
    if not TYPE_CHECKING:
        trt = library.module
    contract = record.contract
    found: dict[trt.TensorIOMode, dict[str, str]] = {trt.TensorIOMode.INPUT: {}, trt.TensorIOMode.OUTPUT: {}}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        dtype = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        found[engine.get_tensor_mode(name)][name] = {"HALF": "float16", "FLOAT": "float32"}.get(dtype, dtype.lower())
    check_signature(f"{contract.stage}.engine", contract, *found.values())
    with library.step(contract.stage, "report the engine's layers", _REPORT):
        inspector = engine.create_engine_inspector()
        layers: str = require(inspector.get_engine_information(trt.LayerInformationFormat.JSON) or None)
    computes_in, note = check_precision(contract.stage, record.precision, layers, str(library))
    if note is not None:
        say(note)
    return computes_in, layers


def _monitor(module: Any, progress: ProgressLine, interrupted: threading.Event) -> Any:
    """Return a monitor that shows the progress of a build's outermost phase and stops once ``interrupted`` is set."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == next(iter(self._phases), None):
                progress.update(step, self._phases[phase_name])  # never the last: the engine is serialised after it
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()
