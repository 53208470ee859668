"""How a bundle is exported: what the user chose, and what that means for each graph of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import AttentionRecord
from rsrefseg.engines.errors import BadInputError
from rsrefseg.inference.attention import AttentionChoice, AttentionForm
from rsrefseg.model.config import SAM_MLP_RATIO, ModelConfig, SamConfig

from .graph import FUSED_OPSET, OPSET
from .precision.half_blocks import check_plan
from .precision.plan import PrecisionPlan


class Target(StrEnum):
    """The runtime a bundle is exported for. Every runtime runs every bundle, but not equally fast."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


# Why ``default_attention`` chooses what it does; written into the manifest.
REASONS: Mapping[Target, str] = {
    Target.ONNXRUNTIME: "fastest single blocks of preset b with ONNX Runtime on an x86 CPU; parts fit its cache",
    Target.OPENVINO: "fastest single blocks of preset b with OpenVINO in BF16 on an x86 CPU; parts fit its cache",
    Target.ONNXRUNTIME_CUDA: "fastest image encoder of preset b in FP16 with ONNX Runtime on an NVIDIA H200",
    Target.TENSORRT: "not measured: TensorRT has fused kernels for plain attention in one part",
}
# Limits for CPUs: the float32 scores of one part of a global block's queries, the hidden activations of one MLP part.
_SCORES_BYTES = 128 << 20
_HIDDEN_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How one stage is written.

    Attributes:
        opset: ONNX operator set; ``FUSED_OPSET`` writes attention as one operator.
        fp32_blocks: blocks that stay float32 in half precision besides ``ALWAYS_FP32``, with reasons; None for a
            float32 graph.
        attention: form of attention in SAM's image encoder.
        attention_record: the same for the manifest; None for other stages.
    """

    opset: int
    fp32_blocks: Mapping[str, str] | None
    attention: AttentionChoice
    attention_record: AttentionRecord | None

    @property
    def fp16(self) -> bool:
        """Whether the graph computes in half precision."""
        return self.fp32_blocks is not None

    @property
    def fused(self) -> bool:
        """Whether attention is one operator."""
        return self.opset == FUSED_OPSET


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What the user chose; nothing of it changes what graphs compute.

    Attributes:
        plan: blocks that stay float32 in half precision; None for float32.
        target: the runtime whose fastest form of attention is written.
        attention: another form, as in ``--attention``.
        opset: ``OPSET``, or ``FUSED_OPSET`` for ``Attention`` nodes.

    Raises:
        BadInputError: a choice is unknown or contradicts another one.
    """

    plan: PrecisionPlan | None = None
    target: Target = Target.ONNXRUNTIME
    attention: str | None = None
    opset: int = OPSET

    def __post_init__(self) -> None:
        if self.opset not in (OPSET, FUSED_OPSET):
            raise BadInputError(f"--opset {self.opset} is not offered: choose {OPSET}, or {FUSED_OPSET} for Attention")
        if self.opset == FUSED_OPSET and self.target is Target.TENSORRT:
            raise BadInputError(f"TensorRT 10.3 does not read opset {FUSED_OPSET}: leave --opset at {OPSET}")
        if self.attention is not None:
            parse_attention(self.attention, AttentionChoice())

    def resolve(self, config: ModelConfig) -> dict[Stage, StageSettings]:
        """The settings of each graph of a model.

        Raises:
            BadInputError: the plan names a block that the model does not have, or SAM's grid cannot be divided as
                chosen.
        """
        if self.plan is not None:
            check_plan(self.plan, config)
        choice, reason = default_attention(config.sam, self.target, self.plan is not None), REASONS[self.target]
        if self.attention is not None:
            choice = parse_attention(self.attention, choice)
            reason = f"chosen with --attention {self.attention}"
        for parts in (choice.query_parts, choice.mlp_parts):
            if config.sam.grid_size % parts:
                raise BadInputError(
                    f"the {config.sam.grid_size} rows of SAM's grid cannot be divided into {parts} equal parts: "
                    "choose another number in --attention"
                )
        record = AttentionRecord(
            windowed=choice.windowed,
            whole=choice.whole,
            query_parts=choice.query_parts,
            target=self.target,
            reason=reason,
            mlp_parts=choice.mlp_parts,
        )
        return {
            stage: StageSettings(
                opset=self.opset,
                fp32_blocks=None if self.plan is None else self.plan.of(stage),
                attention=choice,
                attention_record=record if stage is Stage.SAM_ENCODER else None,
            )
            for stage in Stage
        }


def default_attention(config: SamConfig, target: Target = Target.ONNXRUNTIME, fp16: bool = False) -> AttentionChoice:
    """A target's fastest form for a model of this size: folded in one part on GPUs, in a few parts on CPUs."""
    if target in (Target.ONNXRUNTIME_CUDA, Target.TENSORRT):
        return AttentionChoice(AttentionForm.FOLDED, AttentionForm.FOLDED)
    tokens = config.grid_size**2
    scores_bytes, hidden_bytes = 4 * config.num_heads * tokens**2, 4 * SAM_MLP_RATIO * config.embed_dim * tokens
    # MLP parts were measured with ONNX Runtime in FP32; half-precision graphs run on GPUs.
    in_parts = target is Target.ONNXRUNTIME and not fp16
    return AttentionChoice(
        windowed=AttentionForm.FOLDED,
        whole=AttentionForm.ADDITIVE,
        query_parts=_fewest_parts(config.grid_size, scores_bytes, _SCORES_BYTES),
        mlp_parts=_fewest_parts(config.grid_size, hidden_bytes, _HIDDEN_BYTES) if in_parts else 1,
    )


def _fewest_parts(rows: int, whole_bytes: int, limit_bytes: int) -> int:
    fits = (parts for parts in range(1, rows + 1) if rows % parts == 0 and whole_bytes // parts <= limit_bytes)
    return next(fits, rows)


def parse_target(text: str) -> Target:
    """A target by name.

    Raises:
        BadInputError: no target has that name.
    """
    if text not in tuple(Target):
        raise BadInputError(f"--target '{text}' is unknown: choose one of {', '.join(Target)}")
    return Target(text)


def parse_attention(text: str, default: AttentionChoice) -> AttentionChoice:
    """Read ``windowed=FORM,global=FORM:PARTS,mlp=PARTS``; what is left out stays as in ``default``.

    Raises:
        BadInputError: the text has another form.
    """
    choice = default
    for item in text.split(","):
        kind, _, value = item.strip().partition("=")
        name, _, parts = value.partition(":")
        known = name in tuple(AttentionForm) and (not parts or _is_count(parts))
        if kind == "mlp" and _is_count(value):
            choice = replace(choice, mlp_parts=int(value))
        elif kind == "windowed" and known and not parts:
            choice = replace(choice, windowed=AttentionForm(name))
        elif kind == "global" and known:
            choice = replace(choice, whole=AttentionForm(name), query_parts=int(parts or 1))
        else:
            raise BadInputError(
                f"--attention '{item.strip()}' is not windowed=FORM, global=FORM:PARTS or mlp=PARTS, "
                f"with FORM one of {', '.join(AttentionForm)}"
            )
    return choice


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0
