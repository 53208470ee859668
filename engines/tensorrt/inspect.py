"""Checks the precision of a built engine with TensorRT's engine inspector.

The inspector's JSON is not a stable format: names of keys and kinds of layers differ between TensorRT 10.3 and 11.4.
"""

import json
from collections import Counter
from typing import Any

from ..bundle.contracts import Stage
from ..errors import RSRefSegError

# Parts of the names of matrix products, convolutions and attention.
_HEAVY = ("conv", "gemm", "matmul", "matrix_multiply", "matrixmultiply", "mha", "attention", "einsum")
_INT8, _FP8 = ("int8", "i8i8"), ("fp8", "e4m3")
_HALF, _SINGLE, _TF32 = ("half", "fp16", "float16", "f16f16"), ("float", "fp32", "float32"), ("tf32",)
_KIND_KEYS = ("LayerType", "ParameterType", "Name", "TacticName")
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
_MOVES = ("reformat", "shuffle", "noop", "cast")  # layers that are named after their consumers
_OPAQUE = ("foreignnode", "myelin")  # layers that contain a part of a graph and show only the types at its borders


def count_layers(information: str) -> Counter[str]:
    """Count the heavy layers in the inspector's JSON by precision: FP8, INT8, FP16, FP32, TF32, or unknown.

    Raises:
        ValueError: the text is not a JSON object with layers.
    """
    document = json.loads(information)
    layers = document.get("Layers", document.get("layers")) if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise ValueError("it lists no layers")
    return Counter(filter(None, map(_precision, layers)))


def check_precision(stage: Stage, precision: str, information: str, library: str) -> tuple[str, str | None]:
    """Check that an engine has the precision of its graph.

    Args:
        stage: stage of the engine.
        precision: ``fp32``, ``fp16``, ``int8`` or ``fp8``, from the bundle.
        information: JSON of the inspector.
        library: name and version of the kind of TensorRT.

    Returns:
        The layer counts as text, and a note if they do not confirm the precision.

    Raises:
        RSRefSegError: every heavy layer of an FP16 stage runs in FP32, none of an INT8 or FP8 stage in its
            precision, or one of an FP32 stage in lower precision.
    """
    try:
        count = count_layers(information)
    except ValueError as error:
        return "unknown", f"{stage}: {library}'s inspector does not report the precision ({error})"
    text = ", ".join(f"{number} {name}" for name, number in sorted(count.items())) or "none"
    wrong = None
    if precision == "fp16" and count["FP32"] + count["TF32"] and not count["FP16"] + count["unknown"]:
        wrong = f"requested in FP16, but every matrix product and convolution of its engine runs in FP32 ({text})"
    elif precision == "fp32" and count["FP16"] + count["TF32"]:
        wrong = f"requested in FP32, but its engine computes in lower precision ({text})"
    elif precision in ("int8", "fp8") and not count[precision.upper()] + count["unknown"]:
        wrong = f"requested in {precision.upper()}, but no layer of its engine multiplies in it ({text})"
    if wrong is not None:
        raise RSRefSegError(
            f"stage '{stage}': {wrong}: {library} did not keep the graph's types and the engine is discarded;"
            " export the bundle again, and if the error persists, build with another version of it"
        )
    if count["unknown"] and not count[precision.upper()]:
        return text, f"{stage}: {library}'s inspector reports no types, so {precision} is not confirmed"
    return text, None


def _precision(layer: Any) -> str | None:
    """Return the precision of a layer of the inspector's list; None if it does not multiply."""
    if not isinstance(layer, dict):
        return "unknown" if _any((*_HEAVY, *_OPAQUE), str(layer)) else None
    kind = " ".join(str(layer.get(key, "")) for key in _KIND_KEYS)
    if not _any((*_HEAVY, *_OPAQUE), kind) or _any(_MOVES, str(layer.get("LayerType", ""))):
        return None
    tensors = [tensor for side in ("Inputs", "Outputs") for tensor in layer.get(side) or [] if isinstance(tensor, dict)]
    types = " ".join(str(tensor.get(key, "")) for tensor in tensors for key in _TYPE_KEYS)
    types = types.lower().replace("uint8", "")  # of the image, which is not computed in
    tactic = str(layer.get("TacticName", ""))
    if _any(_FP8, f"{types} {tactic}"):
        return "FP8"
    if _any(_INT8, f"{types} {tactic}"):
        return "INT8"
    if _any(_HALF, f"{types} {tactic}"):
        return "FP16"
    if _any(_TF32, tactic):  # also within a part that shows no types
        return "TF32"
    return "FP32" if _any(_SINGLE, types) and not _any(_OPAQUE, kind) else "unknown"


def _any(marks: tuple[str, ...], text: str) -> bool:
    return any(mark in text.lower() for mark in marks)
