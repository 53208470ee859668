"""Checks the precision of a built engine with TensorRT's engine inspector.

The inspector's JSON is not a stable format: names of keys and kinds of layers differ between TensorRT 10.3 and 11.4.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..bundle.contracts import Stage
from ..errors import RSRefSegError

# Parts of the names of matrix products, convolutions and attention.
_HEAVY = ("conv", "gemm", "matmul", "matrix_multiply", "matrixmultiply", "mha", "attention", "einsum")
_HALF, _SINGLE = ("half", "fp16", "float16", "f16f16"), ("float", "fp32", "float32")
_KIND_KEYS = ("LayerType", "ParameterType", "Name", "TacticName")
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
_TF32 = "tf32"
_MOVES = ("reformat", "shuffle", "noop", "cast")
# Layers that contain a whole part of a graph and show only the types at its borders.
_OPAQUE = ("foreignnode", "myelin")


@dataclass(frozen=True, slots=True)
class LayerCount:
    """The number of heavy layers by precision.

    Attributes:
        half: layers with an FP16 input or output.
        single: layers with FP32 inputs and outputs only.
        tf32: layers among ``single`` whose kernel rounds to TF32.
        unknown: layers whose types the inspector does not report.
    """

    half: int
    single: int
    tf32: int
    unknown: int

    def __str__(self) -> str:
        counts = {"FP16": self.half, "FP32": self.single - self.tf32, "TF32": self.tf32, "unknown": self.unknown}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def count_layers(information: str) -> LayerCount:
    """Count the heavy layers in the inspector's JSON.

    Raises:
        ValueError: the text is not a JSON object with layers.
    """
    document = json.loads(information)
    layers = document.get("Layers", document.get("layers")) if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise ValueError("it lists no layers")
    half = single = tf32 = unknown = 0
    for layer in layers:
        kind = layer if isinstance(layer, str) else " ".join(str(layer.get(key, "")) for key in _KIND_KEYS)
        if not any(mark in kind.lower() for mark in (*_HEAVY, *_OPAQUE)):
            continue
        if isinstance(layer, dict) and any(mark in str(layer.get("LayerType", "")).lower() for mark in _MOVES):
            continue  # named after its consumer
        types = " ".join(_types(layer)).lower() if isinstance(layer, dict) else ""
        tactic = str(layer.get("TacticName", "")).lower() if isinstance(layer, dict) else ""
        if any(mark in types or mark in tactic for mark in _HALF):
            half += 1
        elif _TF32 in tactic:  # also within a part that shows no types
            single, tf32 = single + 1, tf32 + 1
        elif any(mark in types for mark in _SINGLE) and not any(mark in kind.lower() for mark in _OPAQUE):
            single += 1
        else:
            unknown += 1
    return LayerCount(half, single, tf32, unknown)


def check_precision(stage: Stage, precision: str, information: str, library: str) -> tuple[str, str | None]:
    """Check that an engine has the precision of its graph.

    Args:
        stage: stage of the engine.
        precision: ``fp32`` or ``fp16``, from the bundle.
        information: JSON of the inspector.
        library: name and version of the kind of TensorRT.

    Returns:
        The layer counts as text, and a note if they do not confirm the precision.

    Raises:
        RSRefSegError: every heavy layer of an FP16 stage runs in FP32, or one of an FP32 stage in lower precision.
    """
    try:
        count = count_layers(information)
    except ValueError as error:
        return "unknown", f"{stage}: {library}'s inspector does not report the precision ({error})"
    wrong = None
    if precision == "fp16" and count.half == 0 and count.single and not count.unknown:
        wrong = f"requested in FP16, but every matrix product and convolution of its engine runs in FP32 ({count})"
    elif precision == "fp32" and (count.half or count.tf32):
        wrong = f"requested in FP32, but its engine computes in lower precision ({count})"
    if wrong is not None:
        raise RSRefSegError(
            f"stage '{stage}': {wrong}: {library} did not keep the graph's types and the engine is discarded;"
            " export the bundle again, and if the error persists, build with another version of it"
        )
    if count.unknown and not (count.half if precision == "fp16" else count.single):
        return str(count), f"{stage}: {library}'s inspector reports no types, so {precision} is not confirmed"
    return str(count), None


def _types(layer: dict[str, Any]) -> Iterator[str]:
    for key in ("Inputs", "Outputs"):
        tensors = layer.get(key)
        for tensor in tensors if isinstance(tensors, list) else []:
            if isinstance(tensor, dict):
                yield from (str(tensor[name]) for name in _TYPE_KEYS if name in tensor)
