"""Compiles graphs with TensorRT-RTX, which needs no GPU, and finds the attentions that became one kernel."""

import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import tensorrt_rtx_bindings as trt

from rsrefseg.engines.bundle.contracts import TensorSpec

# An engine lists its kernels as text, each with the ONNX nodes that it computes.
_FUSED_KERNEL = re.compile(rb'function=\{ name=_gemm_mha_v\d+ [^\n]*? layers="([^"]*)"')
_NODE = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")


def compile_graph(path: Path, inputs: Sequence[TensorSpec] = (), capabilities: Sequence[str] = ("SM89",)) -> bytes:
    """Build the engine of a graph, strongly typed, for GPUs of the given compute capabilities.

    Args:
        path: ONNX file.
        inputs: specs of the inputs with dynamic sizes.
        capabilities: names of TensorRT's ``ComputeCapability``.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [str(parser.get_error(place)) for place in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for place, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    profile = builder.create_optimization_profile()
    for spec in inputs:
        if spec.dims:
            sizes = ({dim.name: getattr(dim, bound) for dim in spec.dims} for bound in ("min", "opt", "max"))
            profile.set_shape(spec.name, *(spec.sized(**size) for size in sizes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, f"{path} does not build"
    return bytes(engine)


def attentions(path: Path) -> set[str]:
    """Return the softmax nodes of a graph whose results are multiplied with values."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    multiplied = {name for node in nodes if node.op_type == "MatMul" for name in node.input}
    return {node.name for node in nodes if node.op_type == "Softmax" and node.output[0] in multiplied}


def nodes_in_fused_kernels(engine: bytes) -> set[str]:
    """Return the ONNX nodes that an engine computes in fused attention kernels."""
    kernels = _FUSED_KERNEL.findall(engine)
    return {name.decode() for kernel in kernels for name in _NODE.findall(kernel)}
