"""The precision plan: which parts of a stage stay float32 in a half-precision bundle, each with its reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import KeptFp32
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_json

HALF_MAX = 65504.0

_NORM = "mean and variance of activations that may reach thousands lose digits or overflow in float16"
_RESIDUAL = "the residual sum carries massive activations that may pass 65,504"
_PIXELS = "the graph's inputs and outputs are float32 (uint8 for images); scaling and resizing pixels costs nothing"
_SIMILARITY = "L2 norms, logit scale and bias, sigmoid filters: s <v, t> + b decides between phrases"
_COSINE = "L2 norms and a cosine times the logit scale, around 100: s <v, t> + b is the dense prompt"
_MASK = "rounding here moves mask edges directly, and it is 0.1% of the work: the sign of its result is the mask"
_LOGITS = "the similarity map's large common offset leaves few digits for its differences"

# Parts that stay float32 in every half-precision bundle, with the reason for each: full module names within the stage,
# "*" for a number, "." for the stage itself. Half blocks inside a part still become half (see half_blocks.py).
ALWAYS_FP32: Mapping[Stage, Mapping[str, str]] = {
    Stage.SIGLIP_VISION: {
        ".": _PIXELS,
        "encoder.layers.*": _RESIDUAL,
        "encoder.layers.*.layer_norm1": _NORM,
        "encoder.layers.*.layer_norm2": _NORM,
        "post_layernorm": _NORM,
    },
    Stage.SIGLIP_TEXT: {
        "encoder.layers.*": _RESIDUAL,
        "encoder.layers.*.layer_norm1": _NORM,
        "encoder.layers.*.layer_norm2": _NORM,
        "final_layer_norm": _NORM,
    },
    Stage.ATTN_PROMPTER: {".": _SIMILARITY},
    Stage.SAM_ENCODER: {
        ".": _PIXELS,
        "image_encoder.blocks.*": _RESIDUAL,
        "image_encoder.blocks.*.norm1": _NORM,
        "image_encoder.blocks.*.norm2": _NORM,
        "image_encoder.neck.*": _NORM,
    },
    Stage.SAM_DECODER: {
        ".": _MASK,
        "prompt_encoder": _LOGITS,
        "mask_decoder.transformer.layers.*": _RESIDUAL,
        "mask_decoder.transformer.layers.*.norm*": _NORM,
        "mask_decoder.transformer.norm_final_attn": _NORM,
        "mask_decoder.output_upscaling.1": _NORM,
        "mask_decoder.output_upscaling.3": _MASK,
        "mask_decoder.output_hypernetworks_mlps.0": _MASK,
    },
}

# The same for the stages that only RSRefSeg 2 has.
ALWAYS_FP32_RSREFSEG2: Mapping[Stage, Mapping[str, str]] = {
    Stage.ATTN_PROMPTER: {
        ".": _COSINE,
        "*_attn_layers.*": _RESIDUAL,
        "*_attn_layers.*.norm_*": _NORM,
    },
    Stage.SAM_ENCODER: {
        ".": _PIXELS,
        "hiera.blocks.*": _RESIDUAL,
        "hiera.blocks.*.layer_norm1": _NORM,
        "hiera.blocks.*.layer_norm2": _NORM,
    },
}

# Blocks that stay float32 besides ``ALWAYS_FP32``, with the reason for each, by stage; empty by default.
PrecisionPlan = Mapping[Stage, Mapping[str, str]]


def choose_plan(fp16: bool, path: Path | None) -> PrecisionPlan | None:
    """Return the plan for ``--fp16`` and ``--plan``; None for float32.

    Raises:
        BadInputError: ``--plan`` without ``--fp16``, or a file that is not a plan.
    """
    if path is not None and not fp16:
        raise BadInputError("--plan lists what stays float32 in half precision: add --fp16")
    if not fp16:
        return None
    return read_plan(path) if path is not None else {}


def read_plan(path: Path) -> PrecisionPlan:
    """Read a plan file.

    Raises:
        BadInputError: the file is missing, or is not a plan.
    """
    try:
        stages = msgspec.json.decode(path.read_bytes(), type=dict[Stage, list[KeptFp32]])
    except FileNotFoundError:
        raise BadInputError(f"'{path}' does not exist: `rsrefseg parity --bisect` writes plans") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"'{path}' is not a precision plan ({error}): `parity --bisect` writes one") from error
    if any(not part.module or not part.reason for parts in stages.values() for part in parts):
        raise BadInputError(f"'{path}': each part of a precision plan needs a module and a reason")
    return {stage: {part.module: part.reason for part in parts} for stage, parts in stages.items()}


def plan_document(plan: PrecisionPlan) -> dict[str, Any]:
    """Return a JSON-serialisable dict: for each stage with entries, a list of modules and reasons."""
    return {
        stage.value: [{"module": module, "reason": reason} for module, reason in plan[stage].items()]
        for stage in Stage
        if plan.get(stage)
    }


def write_plan(path: Path, plan: PrecisionPlan) -> None:
    """Write a plan file, atomically.

    Raises:
        RSRefSegError: the folder cannot be written.
    """
    atomic_write_json(path, plan_document(plan))
