"""The settings of an export, and what they mean for each graph of a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.inference.attention import AttentionChoice, AttentionForm
from rsrefseg.model.config import SAM_MLP_RATIO, ModelConfig, SamConfig

from .graph import FUSED_OPSET, OPSET
from .precision.half_blocks import check_plan
from .precision.plan import PrecisionPlan
from .quantization.settings import QuantizationSettings


class Target(StrEnum):
    """The runtime a bundle is exported for. Others also run it, but slower; GPUs refuse dynamic INT8."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


# Reasons for the choices of ``default_attention``, written into the manifest.
REASONS: Mapping[Target, str] = {
    Target.ONNXRUNTIME: "fastest single blocks of preset b with ONNX Runtime on an x86 CPU; parts fit its cache",
    Target.OPENVINO: "fastest single blocks of preset b with OpenVINO in BF16 on an x86 CPU; parts fit its cache",
    Target.ONNXRUNTIME_CUDA: "one node each, for ONNX Runtime's flash attention on CUDA in FP16; not timed",
    Target.TENSORRT: "fewest bytes and operations among the forms that TensorRT-RTX 1.7.1 fuses; not timed",
}
# Limits for CPUs: the float32 scores of one part of a global block's queries, the hidden activations of one MLP part.
_SCORES_BYTES = 128 << 20
_HIDDEN_BYTES = 16 << 20
_FORM, _COUNT = "|".join(AttentionForm), "[1-9][0-9]*"
_ATTENTION = re.compile(
    f"windowed=(?P<windowed>{_FORM})|global=(?P<whole>{_FORM})(:(?P<query_parts>{_COUNT}))?|mlp=(?P<mlp_parts>{_COUNT})"
)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """The user's settings of an export. They change how graphs compute, not what they compute.

    Attributes:
        plan: blocks that stay float32 in half precision, besides ``ALWAYS_FP32``; None for float32.
        target: the runtime whose fastest form of attention is used; None for ``runtime``'s default.
        attention: another form of attention, as in ``--attention``.
        fp32_sums: stages whose half blocks sum products in float32.
        quantization: how the encoders are quantised; None if they are not.

    Raises:
        BadInputError: a choice is unknown or contradicts another one.
    """

    plan: PrecisionPlan | None = None
    target: Target | None = None
    attention: str | None = None
    fp32_sums: tuple[Stage, ...] = ()
    quantization: QuantizationSettings | None = None

    def __post_init__(self) -> None:
        if self.fp32_sums and not self.fp16:
            raise BadInputError("--fp32-sums is for half precision: add --fp16")
        if self.attention is not None:
            parse_attention(self.attention, AttentionChoice())

    @property
    def fp16(self) -> bool:
        """Whether the graphs compute in half precision."""
        return self.plan is not None

    @property
    def runtime(self) -> Target:
        """The target; by default TensorRT in half precision, which is for GPUs, and else ONNX Runtime."""
        return self.target or (Target.TENSORRT if self.fp16 else Target.ONNXRUNTIME)

    @property
    def fused(self) -> bool:
        """Whether attention is one ONNX operator; SAM's folded form never is."""
        return self.runtime is Target.ONNXRUNTIME_CUDA

    @property
    def opset(self) -> int:
        """The ONNX operator set of the graphs."""
        return FUSED_OPSET if self.fused else OPSET

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on settings that are allowed but slow, one line each."""
        if self.runtime is Target.TENSORRT and not self.fp16:
            return ("TensorRT fuses attention in half precision only: add --fp16 unless you need FP32",)
        return ()

    def resolve(self, config: ModelConfig) -> tuple[AttentionChoice, str]:
        """Return the form of attention for a model, and the reason for it.

        Raises:
            BadInputError: the plan names a block that the model lacks, or SAM's grid cannot be divided into the
                requested parts.
        """
        if self.plan is not None:
            check_plan(self.plan, config)
        if config.rsrefseg2 is not None:
            choice, reason = hiera_attention(config.sam, self.runtime), "Hiera has no position bias, so one form"
        else:
            choice, reason = default_attention(config.sam, self.runtime, self.fp16), REASONS[self.runtime]
        if self.attention is not None:
            choice = parse_attention(self.attention, choice)
            reason = f"chosen with --attention {self.attention}"
            if config.rsrefseg2 is not None and choice != AttentionChoice(query_parts=choice.query_parts):
                raise BadInputError(
                    "RSRefSeg 2 has one form of attention: --attention takes global=published:PARTS only"
                )
        if self.fused and choice.query_parts > 1 and choice.whole is not AttentionForm.FOLDED:
            raise BadInputError(
                f"--target {self.runtime} writes one node per attention, which has no parts: "
                f"leave out ':{choice.query_parts}' in --attention"
            )
        for parts in (choice.query_parts, choice.mlp_parts):
            if config.sam.grid_size % parts:
                raise BadInputError(
                    f"the {config.sam.grid_size} rows of SAM's grid cannot be divided into {parts} equal parts: "
                    "choose another number in --attention"
                )
        return choice, reason


def choose_quantization(
    int8: bool, fp8: bool, fp16: bool, target: Target | None, **judgement: Any
) -> QuantizationSettings | None:
    """Return how ``--int8`` or ``--fp8`` quantise for a target; None without them.

    Args:
        int8, fp8, fp16: whether these options are given.
        target: the target, if one is given.
        judgement: the other fields of ``QuantizationSettings``; None for those that were not given.

    Raises:
        BadInputError: the options contradict each other.
    """
    given = {name: value for name, value in judgement.items() if value is not None}
    if not int8 and not fp8:
        if given:
            raise BadInputError(f"--{next(iter(given)).replace('_', '-')} is for quantised bundles: add --int8")
        return None
    if int8 and fp8:
        raise BadInputError("--int8 and --fp8 contradict each other: give one of them")
    if fp8 and not fp16:
        raise BadInputError("--fp8 is for TensorRT with the rest in half precision: add --fp16")
    runtime = target or (Target.TENSORRT if fp16 else Target.ONNXRUNTIME)
    tensorrt = runtime is Target.TENSORRT
    if fp8 and not tensorrt:
        raise BadInputError(f"--fp8 is for the target tensorrt, not {runtime}: leave --target out")
    if runtime is Target.ONNXRUNTIME_CUDA:
        raise BadInputError("--int8 is for the targets onnxruntime, openvino and tensorrt: choose one of them")
    if given and "data" not in given:
        raise BadInputError(f"--{next(iter(given)).replace('_', '-')} is for judging masks on a data set: add --data")
    if fp16 and not tensorrt:
        raise BadInputError("--int8 with --fp16 is for the target tensorrt: leave --fp16 out for CPUs")
    precision: Literal["int8", "fp8"] = "fp8" if fp8 else "int8"
    return QuantizationSettings(precision, runtime is not Target.ONNXRUNTIME, tensorrt, **given)


def default_attention(config: SamConfig, target: Target = Target.ONNXRUNTIME, fp16: bool = False) -> AttentionChoice:
    """Return a target's fastest form of attention for a model of this size: one part on GPUs, several on CPUs."""
    match target:
        case Target.ONNXRUNTIME_CUDA:
            return AttentionChoice(AttentionForm.PADDED, AttentionForm.PADDED)
        case Target.TENSORRT:
            return AttentionChoice(AttentionForm.ADDITIVE, AttentionForm.PADDED)
    tokens = config.grid_size**2
    scores_bytes, hidden_bytes = 4 * config.num_heads * tokens**2, 4 * SAM_MLP_RATIO * config.embed_dim * tokens
    # MLP parts are tuned for ONNX Runtime in FP32; half-precision graphs run on GPUs.
    in_parts = target is Target.ONNXRUNTIME and not fp16
    return AttentionChoice(
        windowed=AttentionForm.FOLDED,
        whole=AttentionForm.ADDITIVE,
        query_parts=_fewest_parts(config.grid_size, scores_bytes, _SCORES_BYTES),
        mlp_parts=_fewest_parts(config.grid_size, hidden_bytes, _HIDDEN_BYTES) if in_parts else 1,
    )


def hiera_attention(config: SamConfig, target: Target) -> AttentionChoice:
    """Return the attention of RSRefSeg 2: on CPUs in parts. Global blocks have 4 times the heads of the first stage."""
    if target in (Target.ONNXRUNTIME_CUDA, Target.TENSORRT):
        return AttentionChoice()
    scores_bytes = 4 * 4 * config.num_heads * config.grid_size**4
    return AttentionChoice(query_parts=_fewest_parts(config.grid_size, scores_bytes, _SCORES_BYTES))


def _fewest_parts(rows: int, whole_bytes: int, limit_bytes: int) -> int:
    fits = (parts for parts in range(1, rows + 1) if rows % parts == 0 and whole_bytes // parts <= limit_bytes)
    return next(fits, rows)


def parse_fp32_sums(text: str | None) -> tuple[Stage, ...]:
    """Return the stages in a comma-separated list; none without a text.

    Raises:
        BadInputError: no stage has such a name.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in [stage.value for stage in Stage]:
            raise BadInputError(f"--fp32-sums '{name}' is not a stage: choose among {', '.join(map(str, Stage))}")
    return tuple(Stage(name) for name in names)


def parse_target(text: str | None) -> Target | None:
    """Return the target called ``text``, or None without a text.

    Raises:
        BadInputError: no target has that name.
    """
    if text is None:
        return None
    if text not in tuple(Target):
        raise BadInputError(f"--target '{text}' is unknown: choose one of {', '.join(Target)}")
    return Target(text)


def parse_attention(text: str, default: AttentionChoice) -> AttentionChoice:
    """Parse ``windowed=FORM,global=FORM:PARTS,mlp=PARTS``; missing items keep their value in ``default``.

    Raises:
        BadInputError: the text has another format.
    """
    choice = default
    for item in text.split(","):
        found = _ATTENTION.fullmatch(item.strip())
        if found is None:
            raise BadInputError(
                f"--attention '{item.strip()}' is not windowed=FORM, global=FORM:PARTS or mlp=PARTS, "
                f"with FORM one of {', '.join(AttentionForm)}"
            )
        if found["windowed"]:
            choice = replace(choice, windowed=AttentionForm(found["windowed"]))
        elif found["whole"]:
            choice = replace(choice, whole=AttentionForm(found["whole"]), query_parts=int(found["query_parts"] or 1))
        else:
            choice = replace(choice, mlp_parts=int(found["mlp_parts"]))
    return choice
