"""Finds the attentions of a parsed network, those that an engine computes in one kernel, and its quantised products."""

import re
from collections import defaultdict
from typing import Any, NamedTuple

# Layers that may stand between the softmax and the two products: scale, bias, mask, change of type or shape.
_BETWEEN = {"CAST", "CONSTANT", "ELEMENTWISE", "IDENTITY", "SCALE", "SELECT", "SHUFFLE", "UNARY"}
_ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\]")
# An engine holds its program as text: a call of a kernel names the layers that the kernel computes.
_FUSED_CALL = re.compile(rb'function=\{ name=\w*_mha_\w* [^\n]* layers="([^"]*)"')


_TENSOR = re.compile(rb'tensor=\{[^\n]* name="([^"]*)"[^\n]* type=(\w+)')
_PRODUCT = re.compile(rb'fully_connected=\{ name="[^"]*" output=\{[^}]*\} input=\{"([^"]*)" "([^"]*)"')
_EIGHT_BITS = (b"int8", b"fp8_e4m3")


class Attention(NamedTuple):
    """An attention of a network: the ONNX node of its softmax, or of the whole, and whether it is in half precision."""

    node: str
    half: bool


def find_attentions(network: Any) -> tuple[Attention, ...]:
    """Return the attentions of a parsed network (``INetworkDefinition`` without control flow) in its order.

    An attention is a softmax between two matrix products, or ONNX's ``Attention``.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    consumers = defaultdict(list)
    for layer in layers:
        for tensor in _inputs(layer):
            consumers[tensor.name].append(layer)

    def before(layer: Any) -> list[Any]:
        return [producer[tensor.name] for tensor in _inputs(layer) if tensor.name in producer]

    def after(layer: Any) -> list[Any]:
        return [reader for tensor in _outputs(layer) for reader in consumers[tensor.name]]

    found = []
    for layer in layers:
        products = []
        if layer.type.name == "ATTENTION_OUTPUT":
            products = [layer]
        elif layer.type.name == "SOFTMAX":
            first, second = _nearest_products(layer, before), _nearest_products(layer, after)
            products = first + second if first and second else []
        if products:
            named = _ONNX_NAME.search(layer.metadata)
            half = any(tensor.dtype.name == "HALF" for product in products for tensor in _outputs(product))
            found.append(Attention(named[1] if named else str(layer.name), half))
    return tuple(found)


def fused_nodes(engine: bytes) -> frozenset[str]:
    """Return the ONNX nodes that fused attention kernels of an engine compute, if it was built with layer names."""
    return frozenset(
        name for layers in _FUSED_CALL.findall(engine) for name in _ONNX_NAME.findall(layers.decode(errors="replace"))
    )


def count_quantized(engine: bytes) -> int:
    """Return the number of matrix products of an engine that multiply in INT8 or FP8; merged ones count once."""
    types = dict(_TENSOR.findall(engine))
    return sum(all(types.get(name) in _EIGHT_BITS for name in names) for names in _PRODUCT.findall(engine))


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(n) for n in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]  # optional inputs may be missing


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(n) for n in range(layer.num_outputs)]


def _nearest_products(start: Any, step: Any) -> list[Any]:
    """Return the matrix products that ``step`` leads to from a layer, through cheap layers only."""
    products, seen, waiting = [], {start.name}, step(start)
    while waiting:
        layer = waiting.pop()
        if layer.name not in seen:
            seen.add(layer.name)
            if layer.type.name == "MATRIX_MULTIPLY":
                products.append(layer)
            elif layer.type.name in _BETWEEN:
                waiting += step(layer)
    return products
