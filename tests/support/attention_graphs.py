"""Small graphs with one attention, for the compilers of runtimes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rsrefseg.engines.bundle.contracts import Stage
from tests.support.made_bundle import CONTRACTS, change_stage, make_bundle, value_info

NODE = "block.attn/node"  # of the attention
_HEADS, _WIDTH = 4, 16
_NODES = """
    pixels = Cast <to = {kind}> (image)
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    rows = Reshape (pooled, flat)
    tokens = Transpose <perm = [0, 2, 1]> (rows)
    q_flat = MatMul (tokens, to_q)
    k_flat = MatMul (tokens, to_k)
    v_flat = MatMul (tokens, to_v)
    q_split = Reshape (q_flat, heads)
    k_split = Reshape (k_flat, heads)
    v_split = Reshape (v_flat, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q_split)
    v = Transpose <perm = [0, 2, 1, 3]> (v_split)
    {attention}
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape (turned, join)
    six = MatMul (joined, to_six)
    {extra}
    clip_features = Cast <to = 1> ({result})
"""
_PLAIN = """
    k = Transpose <perm = [0, 2, 3, 1]> (k_split)
    product = MatMul (q, k)
    weights = Softmax (product)
    mixed = MatMul (weights, v)
"""
_OPERATOR = """
    k = Transpose <perm = [0, 2, 1, 3]> (k_split)
    mixed = Attention (q, k, v)
"""
# Nodes that change nothing, by the fault they plant.
FAULTS = {
    "operator": ("strange = somebody.Strange (six)", "strange"),
    "float64": ("wide = Cast <to = 11> (six) scaled = Mul (wide, one) narrow = Cast <to = 1> (scaled)", "narrow"),
}


def bundle_with_attention(
    folder: Path, dtype: str = "float16", value_width: int = _WIDTH, fault: str = "", operator: bool = False
) -> Path:
    """Write a made bundle whose ``siglip_vision`` is one attention.

    Args:
        folder: folder to make.
        dtype: type in which it computes.
        value_width: width of a head's values; queries and keys have 16.
        fault: a name in ``FAULTS``, or none.
        operator: use ONNX's ``Attention``, of opset 23.
    """
    make_bundle(folder)
    extra, result = FAULTS.get(fault, ("", "six"))
    text = _NODES.format(
        kind=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
        extra=extra,
        result=result,
        attention=_OPERATOR if operator else _PLAIN,
    )
    nodes = onnx.parser.parse_graph(f"nodes () => () {{ {text} }}").node
    for node in nodes:
        node.name = NODE if node.op_type in ("Softmax", "Attention") else f"block.attn/{node.output[0]}"
    contract, random = CONTRACTS[Stage.SIGLIP_VISION], np.random.default_rng(1)
    shapes = dict.fromkeys(("to_q", "to_k"), (3, _HEADS * _WIDTH))
    shapes |= {"to_v": (3, _HEADS * value_width), "to_six": (_HEADS * value_width, 6)}
    constants = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    constants |= {"flat": np.array([0, 3, 16]), "heads": np.array([0, 0, _HEADS, -1]), "join": np.array([0, 0, -1])}
    constants |= {"one": np.float64(1)} if fault == "float64" else {}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs, outputs = ([value_info(spec) for spec in specs] for specs in (contract.inputs, contract.outputs))
    graph = helper.make_graph(nodes, "attention", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 23 if operator else 18), helper.make_opsetid("somebody", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=11 if operator else 9)
    change_stage(folder, Stage.SIGLIP_VISION, model, precision={"float16": "fp16", "float32": "fp32"}[dtype])
    return folder
