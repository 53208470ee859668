"""``rsrefseg build --check``: whether NVIDIA's compiler builds and fuses the graphs of a bundle; no GPU needed."""

import time
from pathlib import Path
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import QUANTIZED
from ..errors import RSRefSegError
from ..records import Record
from ..system.progress import ProgressLine
from .attention import count_quantized, find_attentions, fused_nodes
from .build import BuildOptions, Compiler
from .footprint import activation_bytes, shared_size, tensor_bytes
from .library import LOG, open_rtx

# Compiles for the smallest shared memory and the oldest kernels of the GPUs with fused attention. It is also the
# nearest to Orin's sm87, which TensorRT-RTX does not have.
DEFAULT_GPUS = ("sm86",)
_FP8_GPUS = ("sm89",)  # the oldest that have FP8


def default_gpus(bundle: Bundle) -> tuple[str, ...]:
    """Return the GPUs to compile a bundle for, if none are named."""
    fp8 = any(record.precision == "fp8" for record in bundle.manifest.stages.values())
    return _FP8_GPUS if fp8 else DEFAULT_GPUS


class StageCheck(Record, frozen=True, kw_only=True):
    """What the compiler made of one stage.

    Attributes:
        stage: the stage.
        precision: precision of its graph.
        layers: number of layers of the parsed network; 0 if the graph does not parse.
        attentions: number of attentions in the network.
        half: number of them in half precision, which alone can be fused.
        fused: number of them that became one kernel.
        quantized: number of matrix products in INT8 or FP8; those of query, key and value may be merged.
        engine_mib: size of the engine, MiB; 0 if it was not built.
        activation_mib: GPU memory for activations and scratch at the contract's largest sizes, MiB.
        seconds: time to parse and build, s.
        warnings: warnings of parser and builder.
        fault: what is wrong, with the node; None if nothing is.
    """

    stage: Stage
    precision: str
    layers: int = 0
    attentions: int = 0
    half: int = 0
    fused: int = 0
    quantized: int = 0
    engine_mib: float = 0.0
    activation_mib: float = 0.0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    fault: str | None = None


class CompileReport(Record, frozen=True):
    """The report of ``rsrefseg build --check``.

    Attributes:
        bundle: folder of the bundle.
        compiler: name and version of the compiler.
        gpus: compute capabilities that the graphs were compiled for.
        stages: the stages, in the order they run.
        tensor_mib: size of the inputs and outputs of these stages at the contract's largest sizes, MiB.
        memory_mib: GPU memory of these stages together, without that of CUDA itself, MiB.
    """

    bundle: str
    compiler: str
    gpus: tuple[str, ...]
    stages: tuple[StageCheck, ...]
    tensor_mib: float
    memory_mib: float

    @property
    def failure(self) -> str | None:
        """The first fault and the number of others; None if the check holds."""
        faults = [check.fault for check in self.stages if check.fault is not None]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return f"{faults[0]}{more}" if faults else None

    def render(self) -> Any:
        """Return a table for the terminal, with warnings below it."""
        from rich.console import Group
        from rich.text import Text

        from ..system.tables import Table

        columns = ("stage", "layers", "attentions", "fused", "8-bit products", "engine MiB", "activations MiB", "s", "")
        table = Table(f"{self.bundle}, compiled by {self.compiler} for {', '.join(self.gpus)}", columns, verdict=True)
        for check in self.stages:
            verdict = "FAIL" if check.fault else "ok" if check.half == check.attentions else "ok, FP32 is not fused"
            counts = (check.layers, check.attentions, check.fused, check.quantized)
            sizes = (f"{size:.1f}" for size in (check.engine_mib, check.activation_mib, check.seconds))
            table.add(check.stage, *map(str, counts), *sizes, verdict)
        notes = [f"{check.stage}: {line}" for check in self.stages for line in check.warnings]
        memory = f"GPU memory: {self.memory_mib:.0f} MiB for engines, activations and tensors, besides CUDA's own"
        return Group(table.to_rich(), *(Text(note) for note in (memory, *notes)))


def check_compilation(bundle: Bundle, stages: tuple[Stage, ...], gpus: tuple[str, ...]) -> CompileReport:
    """Parse and build the graphs of a bundle, and count the attentions that become one kernel.

    Args:
        bundle: the bundle.
        stages: the stages to check.
        gpus: compute capabilities such as ``sm86``.

    Returns:
        The report. A stage has a fault if its graph does not parse or build, computes in float64, has an attention in
        half precision that is not fused, or is quantised and none of its products are.

    Raises:
        BundleError: a file of the bundle is missing or changed.
        MissingPartError: TensorRT-RTX is not installed.
    """
    compiler = Compiler.for_gpus(open_rtx(), gpus)
    checks = tuple(_check(compiler, bundle, stage) for stage in stages)
    tensor_mib = round(tensor_bytes(bundle.manifest.stages[stage].contract for stage in stages) / 2**20, 3)
    engines_mib = sum(check.engine_mib for check in checks)
    activations_mib = shared_size({check.stage: check.activation_mib for check in checks})
    memory_mib = round(engines_mib + activations_mib + tensor_mib, 3)
    return CompileReport(str(bundle.root), str(compiler.library), gpus, checks, tensor_mib, memory_mib)


def _check(compiler: Compiler, bundle: Bundle, stage: Stage) -> StageCheck:
    graph = bundle.graph_path(stage)  # a changed file is an error of the bundle, not a finding
    record, start = bundle.manifest.stages[stage], time.perf_counter()
    found: dict[str, Any] = {"stage": stage, "precision": record.precision}
    warnings: list[str] = []
    try:
        with ProgressLine(f"compiling {stage}") as progress:
            progress.say(f"compiling {stage}")
            parsed = compiler.parse(stage, graph)
            warnings += LOG.warnings
            attentions = find_attentions(parsed[1])
            halves = [attention.node for attention in attentions if attention.half]
            found |= {"layers": parsed[1].num_layers, "attentions": len(attentions), "half": len(halves)}
            engine = compiler.compile(parsed, record.contract, BuildOptions(), progress)
            warnings += LOG.warnings
        together = fused_nodes(engine)
        found["fused"] = sum(attention.node in together for attention in attentions)
        found["quantized"] = count_quantized(engine)
        found["engine_mib"] = round(len(engine) / 2**20, 3)
        found["activation_mib"] = round(activation_bytes(engine) / 2**20, 3)
        if apart := [node for node in halves if node not in together]:
            found["fault"] = (
                f"stage '{stage}': {len(apart)} of {len(halves)} attentions in half precision are not one kernel, the"
                f" first is node '{apart[0]}': export the bundle again with `rsrefseg export --fp16`"
            )
        elif record.precision in QUANTIZED and not found["quantized"]:
            found["fault"] = f"stage '{stage}': no matrix product of its engine is in {record.precision.upper()}"
        elif (node := _float64_node(graph)) is not None:
            found["fault"] = f"stage '{stage}': node '{node}' is in float64, which becomes float32: export it again"
    except RSRefSegError as error:
        found["fault"] = str(error)
    seconds = round(time.perf_counter() - start, 3)
    return StageCheck(seconds=seconds, warnings=tuple(dict.fromkeys(warnings)), **found)


def _float64_node(path: Path) -> str | None:
    """Return the first node of a graph that takes a float64 constant or makes float64; TensorRT says nothing of it."""
    import onnx

    double = onnx.TensorProto.DOUBLE
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer if tensor.data_type == double}
    for node in graph.node:
        attributes = [(one.name == "to" and one.i == double) or one.t.data_type == double for one in node.attribute]
        if any(attributes) or constants.intersection(node.input):
            return str(node.name)
    return None
