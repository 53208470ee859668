"""Rewrites GELU so that OpenVINO's CPU plugin does not fuse it into the preceding product.

In FP32 the plugin has faster kernels for products without fused operators, and its tanh is slow. A form that the plugin
does not recognise as GELU becomes a separate operator.
"""

from typing import Any

import numpy as np

from .library import package


def rewrite_gelus(graph: Any) -> int:
    """Rewrite the factor of every GELU of a model in place, before the model is compiled. Its values do not change.

    1 + tanh(u) becomes 2 / (1 + exp(-2 u)), which also keeps the digits that 1 + tanh(u) loses for u far below 0, and
    1 + erf(u) becomes 2 (1/2 + erf(u) / 2).

    Args:
        graph: an ``openvino.Model``.

    Returns:
        The number of rewritten GELUs.
    """
    rewritten = 0
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Tanh", "Erf"):
            for factor in _sums_with_one(node):
                new = _by_exp(node.input_value(0)) if kind == "Tanh" else _in_halves(node.output(0))
                factor.output(0).replace(new.output(0))
                rewritten += 1
    return rewritten


def _sums_with_one(node: Any) -> list[Any]:
    def is_one(value: Any) -> bool:
        node = value.get_node()
        return bool(node.get_type_name() == "Constant" and node.data.size == 1 and node.data.item() == 1)

    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    return [node for node in readers if node.get_type_name() == "Add" and any(map(is_one, node.input_values()))]


def _by_exp(u: Any) -> Any:
    ops = package().opset13
    return ops.divide(_number(2, u), ops.add(ops.exp(ops.multiply(u, _number(-2, u))), _number(1, u)))


def _in_halves(erf: Any) -> Any:
    ops = package().opset13
    return ops.multiply(ops.add(ops.multiply(erf, _number(0.5, erf)), _number(0.5, erf)), _number(2, erf))


def _number(number: float, beside: Any) -> Any:
    """Return a constant with the element type of another value."""
    return package().opset13.constant(np.array(number, beside.get_element_type().to_dtype()))
