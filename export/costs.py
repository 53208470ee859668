"""What a graph costs: floating-point operations, parameters, and bytes of its constants."""

import math
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto

from rsrefseg.engines.bundle.contracts import StageContract
from rsrefseg.engines.errors import CheckFailedError

Shape = tuple[int, ...]
_PRODUCTS = ("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Costs:
    """FLOPs of one call at the contract's ``opt`` sizes, floating-point constants, bytes of all constants as stored."""

    flops: int
    parameters: int
    weight_bytes: int


def count_costs(model: ModelProto, contract: StageContract) -> Costs:
    """Count a graph's costs; the values of its weights are not needed.

    FLOPs are those of matrix products and convolutions. Elementwise operations, norms and softmax are left out, as in
    published figures (a few per cent).

    Raises:
        CheckFailedError: a size cannot be derived from those of the inputs, or a product is of a kind not counted here.
    """
    shapes, flops = _shapes(model, contract), 0
    constants = [*model.graph.initializer]
    for node in model.graph.node:
        constants += [attribute.t for attribute in node.attribute if attribute.type == attribute.TENSOR]
        if node.op_type in _PRODUCTS:
            operands = [shapes.get(name, ()) for name in (*node.input[:2], node.output[0])]
            # No operand is a scalar or empty: a zero is a size that inference did not find.
            if not all(shape and all(shape) for shape in operands):
                raise CheckFailedError(f"graph '{contract.stage}': the sizes at '{node.name}' cannot be derived")
            flops += 2 * _multiply_adds(node, *operands)
    parameters = weight_bytes = 0
    for tensor in constants:
        dtype, size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), math.prod(tensor.dims)
        weight_bytes += size * dtype.itemsize
        parameters += size if dtype.kind == "f" else 0
    return Costs(flops, parameters, weight_bytes)


def _multiply_adds(node: NodeProto, left: Shape, right: Shape, output: Shape) -> int:
    match node.op_type:
        case "MatMul":
            return math.prod(output) * left[-1]
        case "Gemm":  # either factor may be transposed: (N, K) or (K, N) to (N, M)
            return math.prod(output) * (math.prod(left) // output[0])
        case "Conv":  # the weight is (out, in / groups, *kernel)
            return math.prod(output) * math.prod(right[1:])
        case "Attention":  # queries (..., N, C), keys (..., M, C), output (..., N, D): two products, N x M each
            return math.prod(output[:-1]) * right[-2] * (left[-1] + output[-1])
    raise CheckFailedError(f"FLOPs of '{node.name}' cannot be counted: exported stages have no {node.op_type}")


def _shapes(model: ModelProto, contract: StageContract) -> dict[str, Shape]:
    """The shape of every value at the contract's ``opt`` sizes; zero where it cannot be inferred."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for spec, value in zip(contract.inputs, fixed.graph.input, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.sized(), strict=True):
            dim.dim_value = size
    # Known shapes have symbolic sizes: without them, inference derives numbers.
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes
