"""Measures how much quantisation changes the result of each layer, all layers of a graph in one run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, ValueInfoProto

from rsrefseg.engines.onnxruntime.library import package

from .layers import find_layers, load_graph, weight_of
from .quantizer import Feeds, fp8_scales, scratch_folder
from .settings import QuantizationSettings

_ROWS = 512  # of a layer's activations, which decide its error; their range is that of all rows
_LAYERS = 64  # whose activations are in memory at a time
_E4M3_BITS, _E4M3_LOWEST = 3, -6


def layer_errors(
    source: Path, settings: QuantizationSettings, feeds: Iterable[Feeds], folder: Path
) -> dict[str, float]:
    """Return the relative L2 error of each layer's product by module, if that layer alone is quantised.

    Args:
        source: the original graph.
        settings: kind of quantisation.
        feeds: inputs of the graph; the worst error counts.
        folder: existing folder for temporary files.
    """
    model, runs = load_graph(source), list(feeds)
    layers = list(find_layers(model).items())
    errors: dict[str, float] = {}
    for start in range(0, len(layers), _LAYERS):
        part = dict(layers[start : start + _LAYERS])
        names = sorted({node.input[0] for nodes in part.values() for node in nodes})
        with scratch_folder(folder) as scratch:
            watched = onnx.ModelProto()
            watched.CopyFrom(model)
            watched.graph.output.extend(ValueInfoProto(name=name) for name in names)
            path = scratch / "watched.onnx"
            onnx.save(watched, path, save_as_external_data=True, location="weights")
            session = package().InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for feed in runs:
                found = dict(zip(names, session.run(names, dict(feed)), strict=True))
                for module, nodes in part.items():
                    error = _error(found, nodes, weight_of(model, nodes), settings)
                    errors[module] = max(errors.get(module, 0.0), error)
    return errors


def _error(
    found: dict[str, npt.NDArray[np.float32]],
    nodes: Sequence[NodeProto],
    weight: npt.NDArray[np.float32],
    settings: QuantizationSettings,
) -> float:
    rows = np.concatenate([found[node.input[0]].reshape(-1, len(weight)) for node in nodes]).astype(np.float32)
    if settings.precision == "fp8":
        rounded, rounded_weight = _in_fp8(rows, np.abs(rows).max()), _in_fp8(weight, np.abs(weight).max(axis=0))
    else:
        rounded, rounded_weight = _in_8_bits(rows, settings.tensorrt), _in_7_bits(weight)
    chosen = slice(None, None, max(1, len(rows) // _ROWS))
    wanted = rows[chosen] @ weight
    difference = rounded[chosen] @ rounded_weight - wanted
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(wanted)), 1e-30))


def _in_8_bits(rows: npt.NDArray[np.float32], symmetric: bool) -> npt.NDArray[np.float32]:
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    step = max(high - low, 1e-30) / 255
    return np.asarray(np.round((rows - low) / step) * step + low, np.float32)


def _in_7_bits(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step = np.maximum(np.abs(weight).max(axis=0), 1e-30) / 64
    return np.asarray(np.round(weight / step) * step, np.float32)


def _in_fp8(values: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scale = fp8_scales(largest)
    scaled = values / scale
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 1e-30))), _E4M3_LOWEST)
    step = np.exp2(exponent - _E4M3_BITS)
    return np.asarray(np.round(scaled / step) * step * scale, np.float32)
