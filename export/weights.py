"""What a graph holds as constants: how many numbers, and how many bytes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class Weights:
    """Constants of a graph.

    Attributes:
        parameters: numbers of floating-point type.
        size_bytes: bytes of all of them, of any type, as stored.
    """

    parameters: int
    size_bytes: int


def count_weights(path: Path) -> Weights:
    """Count a graph's initializers and constant nodes; the file of external weights is not read."""
    parameters = size_bytes = 0
    for tensor in _constants(onnx.load(path, load_external_data=False).graph):
        numbers = math.prod(tensor.dims)
        parameters += numbers if tensor.data_type in _FLOATING else 0
        size_bytes += numbers * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return Weights(parameters, size_bytes)


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == attribute.TENSOR)
