"""Quantises one graph with ONNX Runtime's own quantiser."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, numpy_helper

from rsrefseg.engines.onnxruntime.library import quantization

from .layers import find_layers, halve_tables, load_graph, weight_of
from .settings import QuantizationSettings

Feeds = Mapping[str, npt.NDArray[Any]]
# INT8 weights use seven bits: CPUs without VNNI add two products in 16 bits, which eight bits overflow, silently.
_SEVEN_BITS = True
_INT8_MAX, _E4M3_MAX = 127, 448
# FP8 keeps its precision down to 2e-5 of its largest value, so scales need not be smaller, and none is a subnormal in
# FP16 graphs, whose rounding would put weights beyond the largest value, which becomes NaN.
_FP8_SCALE_MIN = float(np.finfo(np.float16).tiny)


def quantize_graph(
    source: Path, out: Path, settings: QuantizationSettings, kept: frozenset[str], feeds: Iterable[Feeds]
) -> int:
    """Quantise the layers of a graph, except those to keep. Nothing is written if none is left.

    Args:
        source: the original graph.
        out: file to write; its weights go to ``<out>.data``.
        settings: kind of quantisation.
        kept: modules that stay in floating point.
        feeds: inputs of the graph to calibrate with; only read for static quantisation.

    Returns:
        The number of quantised layers.
    """
    model = load_graph(source)
    layers = {module: nodes for module, nodes in find_layers(model).items() if module not in kept}
    for file in (out, out.with_name(f"{out.name}.data")):
        file.unlink(missing_ok=True)  # external data is appended
    if not layers:
        return 0
    halve_tables(model)
    (opset,) = (item for item in model.opset_import if not item.domain)
    opset.version = settings.opset(opset.version)
    with _quiet(), scratch_folder(out.parent) as scratch:
        names = [node.name for nodes in layers.values() for node in nodes]
        made = scratch / "quantized.onnx"
        fp8 = settings.precision == "fp8"
        weights = {nodes[0].input[1]: weight_of(model, nodes) for nodes in layers.values()} if fp8 else {}
        (_static if settings.static else _dynamic)(model, made, names, settings, feeds)
        model = onnx.load(made)
        if fp8:
            _to_fp8(model, weights)
        del model.graph.value_info[:]
        onnx.save(model, out, save_as_external_data=True, location=f"{out.name}.data", size_threshold=1024)
    return len(layers)


def _dynamic(model: ModelProto, out: Path, names: list[str], settings: Any, feeds: Any) -> None:
    library = quantization()
    library.quantize_dynamic(
        model,
        out,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=names,
        per_channel=True,
        reduce_range=_SEVEN_BITS,
        weight_type=library.QuantType.QInt8,
        use_external_data_format=True,
    )


def _static(
    model: ModelProto, out: Path, names: list[str], settings: QuantizationSettings, feeds: Iterable[Feeds]
) -> None:
    library, symmetric = quantization(), settings.tensorrt
    library.quantize_static(
        model,
        out,
        _reader(library, feeds),
        quant_format=library.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=names,
        per_channel=True,
        reduce_range=_SEVEN_BITS,
        activation_type=library.QuantType.QInt8 if symmetric else library.QuantType.QUInt8,
        weight_type=library.QuantType.QInt8,
        use_external_data_format=True,
        calibrate_method=library.CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )


def _to_fp8(model: ModelProto, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Replace symmetric INT8 by FP8 (E4M3) in a graph of Q/DQ nodes, in place; ``weights`` are the original ones.

    ONNX Runtime's own scales for FP8 follow from the deviation of values, and so cut off the largest.
    """
    from ml_dtypes import float8_e4m3fn

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def replace(name: str, value: npt.NDArray[Any]) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))

    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] in done:
            continue
        value, scale, zero = node.input
        weight = weights.get(value.removesuffix("_quantized"))
        scales = numpy_helper.to_array(tensors[scale])
        if weight is not None:
            scales = fp8_scales(np.abs(weight).max(axis=0)).astype(scales.dtype)
            scaled = np.clip(weight / scales.astype(np.float32), -_E4M3_MAX, _E4M3_MAX)
            replace(value, scaled.astype(float8_e4m3fn))
            replace(scale, scales)
        else:
            replace(scale, fp8_scales(scales.astype(np.float32) * _INT8_MAX).astype(scales.dtype))
        replace(zero, np.zeros_like(scales).astype(float8_e4m3fn))
        done.add(scale)


def fp8_scales(largest: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the scales of FP8 (E4M3) for values with these largest magnitudes."""
    return np.asarray(np.maximum(largest / _E4M3_MAX, _FP8_SCALE_MIN), np.float32)


def _reader(library: Any, feeds: Iterable[Feeds]) -> Any:
    class Reader(library.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            found = next(self._feeds, None)
            return dict(found) if found is not None else None

    return Reader()


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder inside ``folder``, and let libraries put their temporary files there.

    They are as large as the weights. With the unfinished bundle, the next export removes what a killed one left.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder, prefix=".quantize") as scratch:
        tempfile.tempdir = scratch
        try:
            yield Path(scratch)
        finally:
            tempfile.tempdir = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice to preprocess graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
