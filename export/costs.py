"""The cost of a stage: floating-point operations, parameters, and bytes of its graph's constants."""

import math

import onnx
import torch
from onnx import ModelProto
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rsrefseg.engines.bundle.contracts import StageContract


def count_flops(module: nn.Module, contract: StageContract) -> int:
    """Return the FLOPs of one call at the contract's ``opt`` sizes, as PyTorch counts them, without computing.

    Only matrix products and convolutions count, with 2 FLOPs per multiply-add. Elementwise operations, norms and
    softmax (a few per cent) are excluded, as in published figures.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        module(*(torch.ones(spec.sized(), dtype=getattr(torch, spec.dtype)) for spec in contract.inputs))
    return counter.get_total_flops()


def count_weights(model: ModelProto) -> tuple[int, int]:
    """Return the number of floating-point constants of a graph, and the size of all its constants in bytes."""
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.type == attribute.TENSOR]
    parameters = weight_bytes = 0
    for tensor in tensors:
        dtype, size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), math.prod(tensor.dims)
        weight_bytes += size * dtype.itemsize
        parameters += size if dtype.kind == "f" else 0
    return parameters, weight_bytes
