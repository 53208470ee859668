"""Quantises one graph with ONNX Runtime's own quantiser."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import ModelProto

from rsrefseg.engines.onnxruntime.library import quantization

from .layers import find_layers, halve_tables, load_graph
from .settings import QuantizationSettings

Feeds = Mapping[str, npt.NDArray[Any]]
# INT8 weights use seven bits: CPUs without VNNI add two products in 16 bits, which eight bits overflow, silently.
_SEVEN_BITS = True


def quantize_graph(
    source: Path, out: Path, settings: QuantizationSettings, kept: frozenset[str], feeds: Iterable[Feeds]
) -> int:
    """Quantise the layers of a graph, except those to keep.

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
    halve_tables(model)
    (opset,) = (item for item in model.opset_import if not item.domain)
    opset.version = settings.opset(opset.version)
    for file in (out, out.with_name(f"{out.name}.data")):
        file.unlink(missing_ok=True)  # external data is appended
    with _quiet(), tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize") as scratch:
        if layers:
            names = [node.name for nodes in layers.values() for node in nodes]
            made = Path(scratch) / "quantized.onnx"
            (_static if settings.static else _dynamic)(model, made, names, settings, feeds)
            model = onnx.load(made)
        del model.graph.value_info[:]
        onnx.save(model, out, save_as_external_data=True, location=f"{out.name}.data", size_threshold=1024)
    return len(layers)


def _dynamic(
    model: ModelProto, out: Path, names: list[str], settings: QuantizationSettings, feeds: Iterable[Feeds]
) -> None:
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
    library = quantization()
    kind = library.QuantType.QFLOAT8E4M3FN if settings.precision == "fp8" else library.QuantType.QInt8
    symmetric = settings.tensorrt
    library.quantize_static(
        model,
        out,
        _reader(library, feeds),
        quant_format=library.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=names,
        per_channel=True,
        reduce_range=_SEVEN_BITS and settings.precision == "int8",
        activation_type=kind if symmetric else library.QuantType.QUInt8,
        weight_type=kind,
        use_external_data_format=True,
        calibrate_method=library.CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )


def _reader(library: Any, feeds: Iterable[Feeds]) -> Any:
    class Reader(library.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            found = next(self._feeds, None)
            return dict(found) if found is not None else None

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice to preprocess graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
