"""Exports one stage module to one ONNX file that follows its contract."""

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Dim, StageContract, TensorSpec

# LayerNormalization requires 17, the exporter writes at least 18, and TensorRT 10.3 parses up to 20.
OPSET = 18
# Contains Attention. ONNX Runtime reads it from 1.23 on; TensorRT up to 11.4 does not.
FUSED_OPSET = 23
_SCOPES = "pkg.torch.onnx.name_scopes"
# The exporter's scope for nodes it adds itself, such as reading a dynamic size.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
# More than one, so that the exporter does not treat a dynamic size as a constant.
_EXAMPLE_SIZE = 2


def export_graph(module: nn.Module, contract: StageContract, path: Path, opset: int = OPSET) -> None:
    """Export a stage with ``torch.onnx.export(dynamo=True)``; weights go to ``<path>.data`` beside the graph.

    Args:
        module: in eval mode; takes and returns tensors in the contract's order.
        contract: names, dtypes and dynamic sizes of the graph.
        path: the file to write.
        opset: ONNX operator set.
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


def merge_slices(model: onnx_ir.Model) -> None:
    """Merge consecutive Slices over different axes into one, in place, to save a copy."""
    for node in model.graph:
        first = node.inputs[0].producer() if node.op_type == "Slice" and node.inputs[0] is not None else None
        if first is None or first.op_type != "Slice":
            continue
        # starts, ends, axes, steps
        values = [
            tuple(value.const_value.numpy() for value in one.inputs[1:] if value is not None and value.const_value)
            for one in (first, node)
        ]
        if any(len(found) != 4 or found[2].min() < 0 for found in values) or set(values[0][2]) & set(values[1][2]):
            continue
        node.replace_input_with(0, first.inputs[0])
        for position, (before, after) in enumerate(zip(*values, strict=True), start=1):
            name = f"{node.outputs[0].name}_{('starts', 'ends', 'axes', 'steps')[position - 1]}"
            merged = onnx_ir.tensor(np.concatenate([before, after]).astype(np.int64), name=name)
            constant = onnx_ir.Value(name=name, const_value=merged)
            model.graph.register_initializer(constant)
            node.replace_input_with(position, constant)
    RemoveUnusedNodesPass()(model)


def _name_by_source(model: onnx_ir.Model) -> None:
    """Name every node after its module, e.g. ``image_encoder.blocks.0.attn.qkv/MatMul``, and drop metadata.

    The exporter's metadata contains stack traces with local paths, and is much larger than the graph.
    """
    used: Counter[str] = Counter()
    graph = model.graph
    for node in graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The last scope is the exporter's name of the operation, the one before it the module's full name.
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
    """Return zeros (ones for masks) of a spec's dtype, with dynamic sizes of two."""
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
    """Silence the exporter: deprecation warnings of its internals and notes of its optimizer."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
