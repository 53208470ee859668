"""The layers of a graph that are quantised: products of activations with a constant matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# By module: the nodes that multiply by its weight. Several if the graph computes the module in parts.
Layers = Mapping[str, Sequence[NodeProto]]


def load_graph(path: Path) -> ModelProto:
    """Load a graph with its weights, and fold transposes of weights, which hide them from quantisers."""
    model = onnx.load(path)
    del model.graph.value_info[:]  # types that quantising changes
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    folded: set[str] = set()
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
            value = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[0]]).transpose(order))
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            folded.add(node.input[0])
        else:
            kept.append(node)
    if folded:
        del model.graph.node[:]
        model.graph.node.extend(kept)
        _drop(model, folded - {name for node in kept for name in node.input})
    return model


def find_layers(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Return the layers of a graph by module: MatMul nodes whose second input is a constant of two dimensions.

    Products with constants of three dimensions (SAM's relative positions) are no layers: quantised per channel, they
    give graphs that fail when they run.
    """
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    layers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            layers.setdefault(node.name.partition("/")[0], []).append(node)
    return layers


def weight_of(model: ModelProto, layer: Sequence[NodeProto]) -> npt.NDArray[np.float32]:
    """Return the weight of a layer, (inputs, outputs) float32."""
    tensor = next(one for one in model.graph.initializer if one.name == layer[0].input[1])
    return np.asarray(numpy_helper.to_array(tensor), np.float32)


def halve_tables(model: ModelProto) -> None:
    """Store the float32 tables whose rows are only gathered as float16, and cast the gathered rows, in place."""
    uses: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    tables = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in uses.get(tensor.name, []))
    ]
    for tensor in tables:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            continue
        for node in uses.get(tensor.name, []):
            rows, wanted = f"{node.output[0]}_half", node.output[0]
            node.output[0] = rows
            cast = helper.make_node("Cast", [rows], [wanted], f"{node.name}/Cast", to=TensorProto.FLOAT)
            model.graph.node.insert(list(model.graph.node).index(node) + 1, cast)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))


def _drop(model: ModelProto, names: set[str]) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
