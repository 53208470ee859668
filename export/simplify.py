"""What the exporter leaves behind that is not what a person would write: slices of slices."""

import numpy as np
import numpy.typing as npt
import onnx_ir

# Of Slice: data, then these.
_FIELDS = ("starts", "ends", "axes", "steps")


def merge_slices(model: onnx_ir.Model) -> None:
    """Make one Slice of two that follow each other over different axes: each would copy what it keeps."""
    graph = model.graph
    for node in list(graph):
        before = _slice_before(node)
        if before is None:
            continue
        merged = [before.inputs[0]]
        for position, field in enumerate(_FIELDS, start=1):
            values = np.concatenate([_constant(one, position) for one in (before, node)])
            name = f"{node.outputs[0].name}_{field}"
            constant = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(values, name=name))
            graph.register_initializer(constant)
            merged.append(constant)
        for position, value in enumerate(merged):
            node.replace_input_with(position, value)
        if not before.outputs[0].uses():
            graph.remove(before, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _slice_before(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The Slice whose result a Slice takes, where both have constants for sizes and no axis in common."""
    before = node.inputs[0].producer() if node.op_type == "Slice" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Slice":
        return None
    if any(len(one.inputs) != 1 + len(_FIELDS) or not all(map(_is_constant, one.inputs[1:])) for one in (before, node)):
        return None
    axes = [set(_constant(one, 1 + _FIELDS.index("axes")).tolist()) for one in (before, node)]
    return before if axes[0].isdisjoint(axes[1]) and min(axes[0] | axes[1]) >= 0 else None


def _is_constant(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _constant(node: onnx_ir.Node, position: int) -> npt.NDArray[np.int64]:
    value = node.inputs[position]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.int64)
