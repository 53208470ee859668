"""One stage module to one ONNX file that fits its contract."""

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Dim, StageContract, TensorSpec

from .simplify import merge_slices

# LayerNormalization needs 17; 18 is the exporter's own floor and well inside what TensorRT 10.3 to 11.4 parse.
OPSET = 18
# Has Attention; read by ONNX Runtime from 1.23 on, by no TensorRT from 10.3 to 11.4.
FUSED_OPSET = 23
_SCOPES = "pkg.torch.onnx.name_scopes"
# The exporter's own word for what it adds itself, such as reading a varying size.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
# More than one, so that the exporter cannot mistake a varying size for a constant.
_EXAMPLE_SIZE = 2


def export_graph(module: nn.Module, contract: StageContract, path: Path, opset: int = OPSET) -> None:
    """Export a stage with ``torch.onnx.export(dynamo=True)``; weights go to ``<path>.data`` beside the graph.

    Args:
        module: in eval mode, float32; takes and gives tensors in the contract's order.
        contract: names, dtypes and varying sizes of the graph.
        path: where the graph goes.
        opset: of the graph.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(example_input(spec) for spec in contract.inputs),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            dynamic_shapes=tuple(_dynamic_axes(spec) for spec in contract.inputs),
            optimize=True,
            verbose=False,
        )
        assert program is not None
        merge_slices(program.model)
        _name_by_source(program.model)
        program.save(path, external_data=True)


def _name_by_source(model: onnx_ir.Model) -> None:
    """Name every node after the module that made it (``image_encoder.blocks.0.attn.qkv/MatMul``) and drop the rest.

    The exporter leaves stack traces with this machine's paths in the graph, which make it ten times as large and
    different on every machine.
    """
    used: Counter[str] = Counter()
    graph = model.graph
    for node in graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The last scope is the exporter's own name of the operation, the one before it the module's full name.
        owner = scopes[-2] if len(scopes) > 1 and scopes[-2] != _NO_MODULE else ""
        name = f"{owner}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    graph.metadata_props.clear()


def example_input(spec: TensorSpec) -> Tensor:
    """Zeros (ones for masks) of a spec's dtype, its varying sizes at two."""
    shape = spec.sized(**{dim.name: min(_EXAMPLE_SIZE, dim.max) for dim in spec.dims})
    dtype = getattr(torch, spec.dtype)
    return torch.ones(shape, dtype=dtype) if dtype is torch.bool else torch.zeros(shape, dtype=dtype)


def _dynamic_axes(spec: TensorSpec) -> dict[int, torch.export.Dim]:
    return {
        axis: torch.export.Dim(size.name, min=size.min, max=size.max)
        for axis, size in enumerate(spec.shape)
        if isinstance(size, Dim)
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (deprecations of its own internals, optimizer notes) away from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
