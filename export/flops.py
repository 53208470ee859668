"""Arithmetic of a graph, counted from the graph: two operations for each multiply-add."""

import math
from collections.abc import Callable
from pathlib import Path

import onnx

from rsrefseg.engines.bundle.contracts import StageContract
from rsrefseg.engines.errors import CheckFailedError

Shape = tuple[int, ...]


def count_flops(path: Path, contract: StageContract) -> int:
    """FLOPs of matrix products and convolutions for one call at the contract's ``opt`` sizes.

    Element-wise work, norms and softmax are left out, as in published figures (they are a few per cent). Of the
    published arithmetic our graphs lack the projections of the tokens that pad SAM's windows: 3% of SAM ViT-B's encoder
    (941 of 972 GFLOP), 4.5% of ViT-L's. What the folded form of attention adds counts: 6 GFLOP in ViT-B's windows.

    Raises:
        CheckFailedError: a size cannot be derived from those of the inputs.
    """
    model = onnx.load(path, load_external_data=False)
    _fix_sizes(model.graph, contract)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type in _COUNTERS:
            inputs = [shapes.get(name, ()) for name in node.input if name]
            output = shapes.get(node.output[0], ())
            # No factor is a scalar and none is empty: a zero is a size that inference did not find.
            if not all(shape and all(shape) for shape in (*inputs[:2], output)):
                raise CheckFailedError(f"graph '{contract.stage}': the sizes at '{node.name}' cannot be derived")
            total += _COUNTERS[node.op_type](node, inputs, output)
    return total


def _fix_sizes(graph: onnx.GraphProto, contract: StageContract) -> None:
    """Give the inputs their ``opt`` sizes and forget every other shape, so that inference derives plain numbers."""
    for spec, value in zip(contract.inputs, graph.input, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.sized(), strict=True):
            dim.dim_value = size
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]


def _matmul(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    return 2 * math.prod(output) * inputs[0][-1]


def _gemm(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(output) * inputs[0][0 if transposed else 1]


def _conv(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    # The weight is (out, in / groups, *kernel): everything behind the first axis is summed for one output value.
    return 2 * math.prod(output) * math.prod(inputs[1][1:])


def _conv_transpose(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    # The weight is (in, out / groups, *kernel): every input value meets everything behind the first axis.
    return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _einsum(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.split("->")[0].replace(" ", "").split(",")
    extents: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        extents |= dict(zip(term, shape, strict=True))
    return 2 * math.prod(extents.values())


def _attention(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    # Queries (..., N, C), keys (..., M, C), output (..., N, D): both products, N x M each.
    return 2 * math.prod(output[:-1]) * inputs[1][-2] * (inputs[0][-1] + output[-1])


_COUNTERS: dict[str, Callable[[onnx.NodeProto, list[Shape], Shape], int]] = {
    "Attention": _attention,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
}
