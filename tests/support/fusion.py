"""Compiles a single graph with TensorRT-RTX, which needs no GPU."""

import re
from pathlib import Path

from rsrefseg.engines.tensorrt.attention import find_attentions, fused_nodes
from rsrefseg.engines.tensorrt.library import open_rtx


def attentions_and_fused(path: Path) -> tuple[set[str], set[str]]:
    """Return the attentions of a graph without dynamic sizes, and those that are one kernel on SM89, by ONNX node."""
    nodes, engine = compile_graph(path)
    return nodes, nodes & fused_nodes(engine)


def types_of_sums(engine: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return how an engine sums: codes of its plain products (2 for FP32), types of its fused attentions."""
    products = re.findall(rb"fully_connected=.*? accumulation_type=(\d)", engine)
    return set(products), set(re.findall(rb"_hmma_(fp\d\d)_traits", engine))


def compile_graph(path: Path, capability: str = "SM89") -> tuple[set[str], bytes]:
    """Return the attentions of a graph without dynamic sizes, by ONNX node, and its engine for a kind of GPU."""
    library = open_rtx()
    trt = library.module
    logger = library.loaders["get_trt_logger"]()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [str(parser.get_error(place)) for place in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # engines name nodes
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, f"{path} does not build"
    return {attention.node for attention in find_attentions(network)}, bytes(engine)
