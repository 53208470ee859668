"""TensorRT-RTX, whose parser and compiler need no GPU and no driver."""

import time
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, StageContract
from ..errors import MissingPartError, NotInstalledError
from ..system.progress import ProgressLine
from .attention import Attention, find_attentions, fused_nodes
from .build import BuiltEngine
from .errors import ErrorLog, TrtCalls, host_bytes, parser_errors, unparsable
from .library import Platform, make_logger
from .records import BuildOptions

NAME = "TensorRT-RTX"
_INSTALL = "pip install 'rsrefseg[tensorrt-rtx]' with Python 3.11 or later"
_REPORT = "run `rsrefseg doctor`"


@dataclass(frozen=True, slots=True)
class Rtx:
    """The imported module, its version, and the logger for its builders and parsers with what it reported."""

    trt: Any
    version: str
    logger: Any
    log: ErrorLog


@dataclass(frozen=True, slots=True)
class ParsedStage:
    """A parsed graph.

    Attributes:
        builder: the builder that owns the network.
        network: the strongly typed network.
        attentions: its attentions.
        warnings: the parser's warnings, one line each.
    """

    builder: Any
    network: Any
    attentions: tuple[Attention, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompiledStage:
    """A serialised engine, the nodes of its fused attentions, the builder's warnings and the time, s."""

    engine: bytes
    fused: frozenset[str]
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class RtxCompiler:
    """Builds engines with TensorRT-RTX for named GPU classes, on any machine. One engine serves them all."""

    rtx: Rtx
    gpus: tuple[str, ...]

    @property
    def platform(self) -> Platform:
        """What the engines depend on besides graph and options."""
        version, gpus = f"RTX {self.rtx.version}", ", ".join(self.gpus)
        return Platform(version, gpus, {"TensorRT": version, "GPUs": gpus})

    def build(self, bundle: Bundle, stage: Stage, options: BuildOptions, progress: ProgressLine) -> BuiltEngine:
        """Build the engine of a stage; see ``parse_stage`` and ``compile_stage``."""
        parsed = parse_stage(self.rtx, bundle, stage)
        compiled = compile_stage(self.rtx, parsed, bundle.manifest.stages[stage].contract, self.gpus)
        fused = sum(attention.node in compiled.fused for attention in parsed.attentions)
        count = f"{fused} of {len(parsed.attentions)} attentions fused"
        return BuiltEngine(compiled.engine, "", f"{bundle.manifest.stages[stage].precision}, {count}", 0)


@lru_cache(maxsize=1)
def open_rtx() -> Rtx:
    """Import TensorRT-RTX.

    Raises:
        MissingPartError: it is not installed, or cannot be imported.
    """
    try:
        try:
            import tensorrt_rtx as trt
        except ModuleNotFoundError:
            import tensorrt_rtx_bindings as trt  # installed without the meta package
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{NAME} is not installed: {_INSTALL}") from error
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise MissingPartError(f"{NAME} cannot be imported ({reason}): {_INSTALL}") from error
    logger, log = make_logger(trt)
    return Rtx(trt, str(trt.__version__), logger, log)


def parse_stage(rtx: Rtx, bundle: Bundle, stage: Stage) -> ParsedStage:
    """Parse the graph of a stage as a strongly typed network.

    Raises:
        BundleError: a file of the bundle is missing or changed, or the graph cannot be parsed; the message names the
            node.
    """
    calls, graph = TrtCalls(stage, rtx.log), bundle.graph_path(stage)
    builder = calls.require(lambda: rtx.trt.Builder(rtx.logger), "start its builder", _REPORT)
    flags = 1 << int(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = calls.require(lambda: builder.create_network(flags), "create a strongly typed network", _REPORT)
    parser = calls.require(lambda: rtx.trt.OnnxParser(network, rtx.logger), "start its ONNX parser", _REPORT)
    rtx.log.clear()
    if not parser.parse_from_file(str(graph)):  # by path, so that it finds the weights beside the graph
        raise unparsable(stage, str(graph), f"RTX {rtx.version}", parser_errors(parser), rtx.log)
    return ParsedStage(builder, network, find_attentions(network, rtx.trt), rtx.log.take_warnings())


def compile_stage(rtx: Rtx, parsed: ParsedStage, contract: StageContract, gpus: tuple[str, ...]) -> CompiledStage:
    """Build the engine of a parsed stage for named GPU classes. The same graph and GPUs give the same bytes.

    Args:
        rtx: the library.
        parsed: the parsed graph; it can be compiled once.
        contract: the stage's contract, whose bounds become the optimisation profile.
        gpus: compute capabilities such as ``sm86``. One engine serves them all.

    Raises:
        RSRefSegError: the engine cannot be built; the message names the stage and quotes the compiler.
    """
    calls, trt = TrtCalls(contract.stage, rtx.log), rtx.trt
    config = calls.require(parsed.builder.create_builder_config, "create a build configuration", _REPORT)
    # FP32 layers must compute in FP32, including those that an FP16 graph deliberately keeps in it.
    calls.run(lambda: config.clear_flag(trt.BuilderFlag.TF32), "switch TF32 off", _REPORT)
    config.num_compute_capabilities = len(gpus)
    for index, gpu in enumerate(gpus):
        capability = getattr(trt.ComputeCapability, gpu.upper())
        choose = partial(config.set_compute_capability, capability, index)
        calls.require_true(choose, f"compile for {gpu}", "name another GPU with --gpus")
    _add_profile(calls, parsed.builder, config, contract)
    rtx.log.clear()
    start = time.perf_counter()
    plan = calls.require(
        lambda: parsed.builder.build_serialized_network(parsed.network, config),
        f"compile the graph for {', '.join(gpus)}",
        "name other GPUs with --gpus, or export the bundle again with this release",
    )
    seconds = time.perf_counter() - start
    engine = host_bytes(plan)
    return CompiledStage(engine, fused_nodes(engine), rtx.log.take_warnings(), seconds)


def _add_profile(calls: TrtCalls, builder: Any, config: Any, contract: StageContract) -> None:
    export_again = "export the bundle again"
    profile = calls.require(builder.create_optimization_profile, "create an optimisation profile", _REPORT)
    for spec in contract.inputs:
        shapes = (spec.sized(**{dim.name: getattr(dim, bound) for dim in spec.dims}) for bound in ("min", "opt", "max"))
        set_shape = partial(profile.set_shape, spec.name, *shapes)
        calls.run(set_shape, f"accept the shapes {spec.shape_text} of '{spec.name}'", export_again)
    calls.require_true(
        lambda: config.add_optimization_profile(profile) >= 0, "use the contract's shapes as a profile", export_again
    )
