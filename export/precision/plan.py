"""The precision plan: which parts of a stage stay float32 in a half-precision bundle, each with its reason."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_json

HALF_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Fp32Part:
    """Part of a stage that stays float32.

    Attributes:
        module: full module name within the stage, ``*`` for a number; ``.`` is the stage itself. It and everything in
            it is meant, but for what is half inside it.
        reason: why.
    """

    module: str
    reason: str

    def __post_init__(self) -> None:
        if not self.module or not self.reason:
            raise BadInputError(
                f"a precision plan needs a module and a reason for each part, got {self.module!r}: {self.reason!r}"
            )


_NORM = "mean and variance of activations that may reach thousands lose digits or overflow in float16"
_RESIDUAL = "the residual sum carries massive activations that may pass 65,504"
_PIXELS = "the graph's inputs and outputs are float32 (uint8 for images); scaling and resizing pixels costs nothing"
_SIMILARITY = "L2 norms, logit scale and bias, sigmoid filters: s <v, t> + b decides between phrases"
_MASK = (
    "rounding here moves mask edges directly, and it is a thousandth of the work: the sign of its result is the mask"
)
_LOGITS = "the similarity map's large common offset leaves few digits for its differences"

# What stays float32 in every half-precision bundle. All other modules with weights are half (see islands.py).
ALWAYS_FP32: Mapping[Stage, tuple[Fp32Part, ...]] = {
    Stage.SIGLIP_VISION: (
        Fp32Part(".", _PIXELS),
        Fp32Part("encoder.layers.*", _RESIDUAL),
        Fp32Part("encoder.layers.*.layer_norm1", _NORM),
        Fp32Part("encoder.layers.*.layer_norm2", _NORM),
        Fp32Part("post_layernorm", _NORM),
    ),
    Stage.SIGLIP_TEXT: (
        Fp32Part("encoder.layers.*", _RESIDUAL),
        Fp32Part("encoder.layers.*.layer_norm1", _NORM),
        Fp32Part("encoder.layers.*.layer_norm2", _NORM),
        Fp32Part("final_layer_norm", _NORM),
    ),
    Stage.ATTN_PROMPTER: (Fp32Part(".", _SIMILARITY),),
    Stage.SAM_ENCODER: (
        Fp32Part(".", _PIXELS),
        Fp32Part("image_encoder.blocks.*", _RESIDUAL),
        Fp32Part("image_encoder.blocks.*.norm1", _NORM),
        Fp32Part("image_encoder.blocks.*.norm2", _NORM),
        Fp32Part("image_encoder.neck.*", _NORM),
    ),
    Stage.SAM_DECODER: (
        Fp32Part(".", _MASK),
        Fp32Part("prompt_encoder", _LOGITS),
        Fp32Part("mask_decoder.transformer.layers.*", _RESIDUAL),
        Fp32Part("mask_decoder.transformer.layers.*.norm*", _NORM),
        Fp32Part("mask_decoder.transformer.norm_final_attn", _NORM),
        Fp32Part("mask_decoder.output_upscaling.1", _NORM),
        Fp32Part("mask_decoder.output_upscaling.3", _MASK),
        Fp32Part("mask_decoder.output_hypernetworks_mlps.0", _MASK),
    ),
}


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """Blocks that stay float32 besides ``ALWAYS_FP32``, by stage. The empty plan is the default one."""

    blocks: Mapping[Stage, tuple[Fp32Part, ...]] = field(default_factory=dict)

    def of(self, stage: Stage) -> tuple[Fp32Part, ...]:
        """The blocks of one stage."""
        return self.blocks.get(stage, ())

    def with_blocks(self, stage: Stage, parts: Iterable[Fp32Part]) -> "PrecisionPlan":
        """This plan with more blocks of a stage; one that is there already keeps its reason."""
        known = {part.module for part in self.of(stage)}
        added = tuple(part for part in parts if part.module not in known)
        return PrecisionPlan({**self.blocks, stage: (*self.of(stage), *added)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: a list of modules with reasons for each stage that has any."""
        return {stage.value: [asdict(part) for part in self.of(stage)] for stage in Stage if self.of(stage)}

    @classmethod
    def from_json(cls, value: Any) -> "PrecisionPlan":
        """Inverse of ``to_json``.

        Raises:
            BadInputError: it is no plan.
        """
        if not isinstance(value, dict):
            raise BadInputError("a precision plan is a JSON object with a list of modules for each stage")
        if unknown := [name for name in value if name not in tuple(Stage)]:
            raise BadInputError(f"the precision plan has an unknown stage '{unknown[0]}': known are {', '.join(Stage)}")
        return cls(
            {Stage(name): tuple(_part(name, item) for item in _list(name, items)) for name, items in value.items()}
        )


def choose_plan(fp16: bool, path: Path | None) -> PrecisionPlan | None:
    """The plan an export was asked for; None for float32.

    Raises:
        BadInputError: a plan without half precision, or a file that holds none.
    """
    if path is not None and not fp16:
        raise BadInputError("--plan says what stays float32 in half precision: give --fp16 with it")
    if not fp16:
        return None
    return read_plan(path) if path is not None else PrecisionPlan()


def read_plan(path: Path) -> PrecisionPlan:
    """Read a plan file.

    Raises:
        BadInputError: it is missing, or holds no plan.
    """
    try:
        return PrecisionPlan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BadInputError(f"'{path}' does not exist: `rsrefseg parity --bisect` writes plans") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"'{path}' is no precision plan ({error}): write it with `parity --bisect`") from error
    except BadInputError as error:
        raise BadInputError(f"'{path}': {error}") from error


def write_plan(path: Path, plan: PrecisionPlan) -> None:
    """Write a plan file, atomically.

    Raises:
        RSRefSegError: the folder cannot be written.
    """
    atomic_write_json(path, plan.to_json())


def _list(stage: str, items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise BadInputError(f"the precision plan's stage '{stage}' must be a list of modules with reasons")
    return items


def _part(stage: str, item: Any) -> Fp32Part:
    names = {"module", "reason"}
    if not isinstance(item, dict) or set(item) != names or not all(isinstance(item[name], str) for name in names):
        raise BadInputError(f"the precision plan's stage '{stage}' has {item!r:.60} instead of a module and a reason")
    return Fp32Part(item["module"], item["reason"])
