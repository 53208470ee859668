"""The lint: what a valid ONNX graph may still have that TensorRT refuses, or that goes wrong in half precision."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from rsrefseg.engines.bundle.contracts import Stage

from .operators import (
    CONSTANT_INPUTS,
    LATER_OPERATORS,
    MAX_OPSET,
    MIN_OPSET,
    OPERATOR_TYPES,
    RESIZE_COORDINATES,
    RESIZE_MODES,
    SHAPE_INPUTS,
)

_ARITHMETIC = ("Abs", "Add", "Div", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Sub", "Sum")
_SUMS = ("LayerNormalization", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


class Rule(StrEnum):
    """What a finding is about."""

    OPSET = "opset"
    OPERATOR = "operator"
    TYPE = "type"
    FLOAT64 = "float64"
    UINT8 = "uint8"
    CONSTANT_INPUT = "constant-input"
    RESIZE = "resize"
    LAYER_NORM = "layer-norm"
    HALF_SUM = "half-sum"
    HALF_CONSTANT = "half-constant"
    INT64_ARITHMETIC = "int64-arithmetic"
    DATA_DEPENDENT_SHAPE = "data-dependent-shape"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be in a graph.

    Attributes:
        stage: whose graph.
        rule: which rule it breaks.
        node: the node's name; of a weight, its own; empty where it is about the whole graph.
        message: what is wrong.
    """

    stage: Stage
    rule: Rule
    node: str
    message: str

    @property
    def module(self) -> str:
        """The PyTorch module behind the node."""
        return self.node.rpartition("/")[0]

    def __str__(self) -> str:
        where = f" (node '{self.node}')" if self.node else ""
        return f"graph '{self.stage}' {self.message}{where}"


def lint_graph(
    model: ModelProto, stage: Stage, folder: Path | None = None, opset: int = MAX_OPSET
) -> tuple[Finding, ...]:
    """Hold a graph against every rule.

    Args:
        model: with the types of all values inferred; control flow and functions are not looked into.
        stage: named in the findings.
        folder: where its external weights lie; without it, their values are not looked at.
        opset: what it was asked for with; one beyond TensorRT's brings operators of its own.
    """
    graph = _Graph(model, folder, opset)
    return tuple(
        Finding(stage, rule, node, message) for rule, search in _RULES.items() for node, message in search(graph)
    )


class _Graph:
    """A graph with what the rules ask of it."""

    def __init__(self, model: ModelProto, folder: Path | None, asked_opset: int) -> None:
        self.max_opset = max(MAX_OPSET, asked_opset)
        self.later_operators = LATER_OPERATORS.get(asked_opset, frozenset())
        self.opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = {value.name for value in model.graph.input}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.folder = folder
        self.types = {name: tensor.data_type for name, tensor in self.weights.items()}
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)
        self.constants = set(self.weights) | {
            name for node in self.nodes if node.op_type == "Constant" for name in node.output
        }
        self.from_data = self._from_data()

    def _from_data(self) -> set[str]:
        """Values that depend on what an input holds, not only on how large it is. Nodes stand in order of use."""
        found = set(self.inputs)
        for node in self.nodes:
            if node.op_type not in ("Shape", "Size") and found.intersection(node.input):
                found.update(node.output)
        return found


def _opset(graph: _Graph) -> Iterator[tuple[str, str]]:
    if not MIN_OPSET <= graph.opset <= graph.max_opset:
        yield "", f"is of opset {graph.opset}: TensorRT 10.3 reads up to {MAX_OPSET}, layer norms need {MIN_OPSET}"


def _operators(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type not in OPERATOR_TYPES and node.op_type not in graph.later_operators:
            yield node.name, f"has the operator {node.op_type}, which not every TensorRT from 10.3 to 11.4 takes"


def _operator_types(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        allowed = OPERATOR_TYPES.get(node.op_type)
        if allowed is None:
            continue
        values = [*node.input[:1], *([] if node.op_type in (*_COMPARISONS, "Shape", "Size") else node.output[:1])]
        kinds = {graph.types[name] for name in values if name in graph.types}
        for kind in sorted(kinds - allowed - {TensorProto.DOUBLE}):  # which has a rule of its own
            yield node.name, f"has {node.op_type} on {_type_name(kind)}, which TensorRT does not take"


def _float64(graph: _Graph) -> Iterator[tuple[str, str]]:
    makers = {name: node.name for node in graph.nodes for name in node.output}
    for name, kind in graph.types.items():
        if kind == TensorProto.DOUBLE:
            yield makers.get(name, name), f"has '{name}' in float64, which engines refuse"
    for node in graph.nodes:
        if any(item.type == item.TENSOR and item.t.data_type == TensorProto.DOUBLE for item in node.attribute):
            yield node.name, "has a constant in float64, which engines refuse"


def _uint8(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        for name in (*node.input, *node.output):
            if graph.types.get(name) == TensorProto.UINT8 and not (name in graph.inputs and node.op_type == "Cast"):
                yield node.name, f"computes on '{name}' in uint8: TensorRT only casts an input of that type"


def _constant_inputs(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        position = CONSTANT_INPUTS.get(node.op_type, len(node.input))
        name = node.input[position] if position < len(node.input) else ""
        if name and name not in graph.constants:
            yield node.name, f"computes the axes of {node.op_type} ('{name}'), which TensorRT wants as a constant"


def _resize(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type != "Resize":
            continue
        found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        mode = _text(found.get("mode", b"nearest"))
        coordinates = _text(found.get("coordinate_transformation_mode", b"half_pixel"))
        policy = _text(found.get("keep_aspect_ratio_policy", b"stretch"))
        if mode not in RESIZE_MODES or coordinates not in RESIZE_COORDINATES:
            yield node.name, f"resizes by '{mode}' with '{coordinates}', which TensorRT does not have"
        if found.get("antialias", 0) or policy != "stretch":
            yield node.name, "resizes with antialiasing or a kept aspect ratio, which TensorRT does not have"


def _layer_norms(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            yield node.name, "asks a LayerNormalization for its mean or deviation, which TensorRT does not give"
        if node.op_type == "ReduceMean" and _is_spread_taken(graph, node):
            yield node.name, "has a layer norm in pieces, which overflows in half precision: use LayerNormalization"


def _is_spread_taken(graph: _Graph, mean: NodeProto) -> bool:
    """Whether the deviations from a mean are squared and averaged again."""
    for deviation in graph.consumers[mean.output[0]]:
        if deviation.op_type == "Sub" and deviation.input[0] == mean.input[0]:
            for square in graph.consumers[deviation.output[0]]:
                squares = square.op_type == "Pow" or (square.op_type == "Mul" and len(set(square.input)) == 1)
                averaged = {after.op_type for name in square.output for after in graph.consumers[name]}
                if squares and averaged & {"ReduceMean", "ReduceSum"}:
                    return True
    return False


def _half_sums(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type in _SUMS and graph.types.get(node.input[0]) == TensorProto.FLOAT16:
            yield node.name, f"has {node.op_type} in half precision, whose sum overflows: keep it in float32"


def _half_constants(graph: _Graph) -> Iterator[tuple[str, str]]:
    for name, tensor in graph.weights.items():
        outside = tensor.data_location == TensorProto.EXTERNAL
        if tensor.data_type != TensorProto.FLOAT16 or (outside and graph.folder is None):
            continue
        if not np.isfinite(numpy_helper.to_array(tensor, str(graph.folder or ""))).all():
            yield name, "has a weight beyond what half precision holds: keep its module in float32"


def _int64_arithmetic(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        is_int64 = graph.types.get(node.output[0]) == TensorProto.INT64
        if is_int64 and node.op_type in _ARITHMETIC and node.output[0] in graph.from_data:
            yield node.name, f"computes {node.op_type} on int64 values that are neither sizes nor indices"


def _data_dependent_shapes(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        for position in SHAPE_INPUTS.get(node.op_type, ()):
            if len(node.input) > position and (name := node.input[position]) in graph.from_data:
                yield node.name, f"lets the values of an input decide a size ({node.op_type} by '{name}')"


_RULES: dict[Rule, Callable[[_Graph], Iterator[tuple[str, str]]]] = {
    Rule.OPSET: _opset,
    Rule.OPERATOR: _operators,
    Rule.TYPE: _operator_types,
    Rule.FLOAT64: _float64,
    Rule.UINT8: _uint8,
    Rule.CONSTANT_INPUT: _constant_inputs,
    Rule.RESIZE: _resize,
    Rule.LAYER_NORM: _layer_norms,
    Rule.HALF_SUM: _half_sums,
    Rule.HALF_CONSTANT: _half_constants,
    Rule.INT64_ARITHMETIC: _int64_arithmetic,
    Rule.DATA_DEPENDENT_SHAPE: _data_dependent_shapes,
}


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
