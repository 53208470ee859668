"""What a bundle is exported for: the runtime, the form of SAM's attention, and the operator set."""

from dataclasses import dataclass

from rsrefseg.engines.bundle.manifest import AttentionRecord
from rsrefseg.engines.errors import BadInputError
from rsrefseg.inference.attention import FORMS, AttentionChoice, Target, default_attention, parse_attention
from rsrefseg.model.config import SamConfig

from .graph import FUSED_OPSET, OPSET


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """Choices that change how graphs compute, and nothing of what they compute.

    Attributes:
        target: the runtime whose measured defaults are used.
        attention: another form than the target's, as ``--attention`` says it.
        opset: ``OPSET``, or ``FUSED_OPSET`` for ``Attention`` nodes.

    Raises:
        BadInputError: a choice that nothing could read.
    """

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

    @property
    def fused(self) -> bool:
        """Whether attention is one operator."""
        return self.opset == FUSED_OPSET

    def choice(self, config: SamConfig, half: bool) -> AttentionChoice:
        """The form of attention for a model of this size, in float32 or with half precision in it.

        Raises:
            BadInputError: the grid cannot be taken in so many parts.
        """
        default = default_attention(config, self.target, half)
        choice = default if self.attention is None else parse_attention(self.attention, default)
        for parts in (choice.query_parts, choice.mlp_parts):
            if config.grid_size % parts:
                raise BadInputError(
                    f"the {config.grid_size} rows of SAM's grid cannot be taken in {parts} equal parts: "
                    "give another number in --attention"
                )
        return choice

    def record(self, config: SamConfig, half: bool) -> AttentionRecord:
        """What the manifest says of it."""
        choice = self.choice(config, half)
        reason = FORMS[self.target].reason if self.attention is None else f"asked for: --attention {self.attention}"
        return AttentionRecord(choice.windowed, choice.whole, choice.query_parts, self.target, reason, choice.mlp_parts)
