"""Checks that every exported graph must pass before it becomes part of a bundle."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.shape_inference import InferenceError

from rsrefseg.engines.bundle.contracts import Dim, StageContract, TensorSpec
from rsrefseg.engines.errors import CheckFailedError

from .graph import OPSET

# They read or write bytes as codes with a scale, in sums of 32 bits.
_QUANTIZED = ("DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear")
_SUMS = ("LayerNormalization", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare")
# Positions of the inputs that decide a size, or which part of a tensor is used.
_SIZE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
}


def check_graph(path: Path, contract: StageContract, opset: int = OPSET) -> ModelProto:
    """Check that a graph is valid ONNX of standard operators, fits its contract and is safe in half precision.

    Args:
        path: file of the graph.
        contract: required inputs and outputs.
        opset: required operator set.

    Returns:
        The graph with all types inferred and without its external weights.

    Raises:
        CheckFailedError: a check failed; the message names the stage and the fault.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.shape_inference.infer_shapes(
            onnx.load(path, load_external_data=False), check_type=True, strict_mode=True
        )
    except (onnx.checker.ValidationError, InferenceError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckFailedError(f"graph '{contract.stage}' is not valid ONNX: {first_line}") from error
    findings = [
        *_contract_findings("input", contract.inputs, model.graph.input),
        *_contract_findings("output", contract.outputs, model.graph.output),
        *find_faults(model, path.parent, opset),
    ]
    if findings:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise CheckFailedError(f"graph '{contract.stage}' {findings[0]}{more}")
    return model


def _contract_findings(kind: str, specs: tuple[TensorSpec, ...], values: list[ValueInfoProto]) -> Iterator[str]:
    if [value.name for value in values] != [spec.name for spec in specs]:
        yield f"has the {kind}s {', '.join(value.name for value in values)}, not those of its contract"
        return
    for spec, value in zip(specs, values, strict=True):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        wanted = tuple(size.name if isinstance(size, Dim) else size for size in spec.shape)
        if tensor.elem_type != helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)) or shape != wanted:
            found = f"{TensorProto.DataType.Name(tensor.elem_type)} {list(shape)}"
            yield f"has the {kind} '{spec.name}' as {found}, its contract says {spec.dtype} {spec.shape_text}"


def find_faults(model: ModelProto, folder: Path, opset: int = OPSET) -> Iterator[str]:
    """Yield faults that valid ONNX may have: control flow, data-dependent sizes, arithmetic that loses precision.

    Args:
        model: graph with the types of all values inferred.
        folder: folder of its external weights.
        opset: required operator set.
    """
    if (found := {item.domain: item.version for item in model.opset_import}.get("")) != opset:
        yield f"has opset {found}, not {opset}"
    if model.functions:
        yield f"calls the function '{model.functions[0].name}'"
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    yield from (f"has '{name}' in float64" for name, kind in types.items() if kind == TensorProto.DOUBLE)
    inputs = {value.name for value in model.graph.input}
    # Values that depend on an input's values, not only on its sizes. Nodes are in topological order.
    from_data = set(inputs)
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and from_data.intersection(node.input):
            from_data.update(node.output)
        for message in _node_faults(node, types, inputs, from_data):
            yield f"{message} (node '{node.name}')"
    for tensor in model.graph.initializer:
        half = tensor.data_type == TensorProto.FLOAT16
        if half and not np.isfinite(numpy_helper.to_array(tensor, str(folder))).all():
            yield f"has the weight '{tensor.name}' beyond the range of float16: keep its module in float32"


def _node_faults(node: NodeProto, types: dict[str, int], inputs: set[str], from_data: set[str]) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"needs '{node.op_type}' of the domain '{node.domain}'"
    if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
        yield f"has control flow: a graph inside {node.op_type}"
    if any(item.type == item.TENSOR and item.t.data_type == TensorProto.DOUBLE for item in node.attribute):
        yield "has a constant in float64"
    for name in (*node.input, *node.output):
        safe = node.op_type in _QUANTIZED or (name in inputs and node.op_type == "Cast")
        if types.get(name) == TensorProto.UINT8 and not safe:
            yield f"computes on '{name}' in uint8, which wraps around: only cast an input of that type"
    if node.op_type in _SUMS and types.get(node.input[0]) == TensorProto.FLOAT16:
        yield f"has {node.op_type} in half precision, whose sum overflows: keep it in float32"
    for position in _SIZE_INPUTS.get(node.op_type, ()):
        if len(node.input) > position and (name := node.input[position]) in from_data:
            yield f"lets the values of an input decide a size ({node.op_type} by '{name}')"
