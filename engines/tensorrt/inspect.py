"""What the engine inspector says of a built engine, and whether it has the precision that was asked for.

The inspector's JSON is no stable format: names of keys and kinds of layers differ between TensorRT 10.3 and 11.4.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..bundle.contracts import Stage
from ..errors import RSRefSegError

# Parts of names under which matrix products, convolutions and attention go.
_HEAVY = ("conv", "gemm", "matmul", "matrix_multiply", "matrixmultiply", "mha", "attention", "einsum")
_HALF, _SINGLE = ("half", "fp16", "float16", "f16f16"), ("float", "fp32", "float32")
_KIND_KEYS = ("LayerType", "ParameterType", "Name", "TacticName")
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
_TF32 = "tf32"
_MOVES = ("reformat", "shuffle", "noop", "cast")
# Whole parts of a graph as one layer, which shows the types at its borders and not those within.
_OPAQUE = ("foreignnode", "myelin")


@dataclass(frozen=True, slots=True)
class LayerCount:
    """How many heavy layers run in which precision.

    Attributes:
        half: take or give FP16.
        single: take and give FP32 only.
        tf32: among the latter, those whose kernel rounds to TF32.
        unknown: those whose types the inspector does not report.
    """

    half: int
    single: int
    tf32: int
    unknown: int

    def __str__(self) -> str:
        counts = {"FP16": self.half, "FP32": self.single - self.tf32, "TF32": self.tf32, "unknown": self.unknown}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def count_layers(information: str) -> LayerCount:
    """Read the inspector's JSON.

    Raises:
        ValueError: it is not a JSON object with layers.
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
            continue  # named after what it feeds
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


def check_precision(stage: Stage, precision: str, information: str, version: str) -> tuple[str, str | None]:
    """Hold an engine to the precision of its graph.

    Args:
        stage: of which it is.
        precision: ``fp32`` or ``fp16``, as the bundle says.
        information: the inspector's JSON.
        version: TensorRT's.

    Returns:
        What the inspector showed, and a note where that is too little to tell.

    Raises:
        RSRefSegError: every heavy layer of an FP16 stage runs in FP32, or one of an FP32 stage in less.
    """
    try:
        count = count_layers(information)
    except ValueError as error:
        return "unknown", f"{stage}: TensorRT {version}'s inspector does not report the precision ({error})"
    wrong = None
    if precision == "fp16" and count.half == 0 and count.single and not count.unknown:
        wrong = f"asked for in FP16, but every matrix product and convolution of its engine runs in FP32 ({count})"
    elif precision == "fp32" and (count.half or count.tf32):
        wrong = f"asked for in FP32, but its engine computes in less ({count})"
    if wrong is not None:
        raise RSRefSegError(
            f"stage '{stage}': {wrong}: TensorRT {version} did not keep the graph's types; nothing was kept,"
            " export the bundle again and build with another TensorRT if it stays so"
        )
    if count.unknown and not (count.half if precision == "fp16" else count.single):
        return str(count), f"{stage}: TensorRT {version}'s inspector tells no types, so {precision} is not confirmed"
    return str(count), None


def _types(layer: dict[str, Any]) -> Iterator[str]:
    for key in ("Inputs", "Outputs"):
        tensors = layer.get(key)
        for tensor in tensors if isinstance(tensors, list) else []:
            if isinstance(tensor, dict):
                yield from (str(tensor[name]) for name in _TYPE_KEYS if name in tensor)
