"""The settings of ``export --int8`` and ``--fp8``: how the encoders are quantised, and what the masks must hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.tolerances import Measure, Scope, tolerances
from rsrefseg.engines.errors import BadInputError

# Prompter and decoder stay as they are: they are small, and the sign of their result is the mask.
QUANTIZED_STAGES = (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER)
MAX_GIOU_DROP = 0.002
# The first operator set whose scales may be float16, and whose quantised type may be FP8.
_STATIC_OPSET = 19


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How to quantise a bundle.

    Attributes:
        precision: ``int8`` or ``fp8`` (E4M3).
        static: write QuantizeLinear and DequantizeLinear nodes with calibrated scales, which every runtime reads.
            Otherwise ONNX Runtime's CPU takes the scales of activations from each input.
        tensorrt: follow TensorRT's rules: symmetric activations.
        data: data set to calibrate with and to judge masks on.
        images: folder of its images, if not its own.
        split: split of the data set.
        max_giou_drop: limit for the gIoU of the original minus that of the quantised bundle.
        min_iou: limit for the smallest IoU of a mask with that of the original; None for no limit.

    Raises:
        BadInputError: the settings contradict each other.
    """

    precision: Literal["int8", "fp8"] = "int8"
    static: bool = False
    tensorrt: bool = False
    data: Path | None = None
    images: Path | None = None
    split: str = "val"
    max_giou_drop: float = MAX_GIOU_DROP
    min_iou: float | None = None

    def __post_init__(self) -> None:
        if self.static and self.data is None:
            raise BadInputError(
                f"--{self.precision} for this target needs scales calibrated on images: add --data, or choose"
                " --int8 --target onnxruntime"
            )

    @property
    def min_iou_mean(self) -> float:
        """The limit for the mean IoU of masks with those of the original, as for the masks of parity samples."""
        limits = tolerances(self.precision, Scope.MASKS)
        return next(one.limit for one in limits if one.measure is Measure.IOU_MEAN)

    def opset(self, before: int) -> int:
        """Return the operator set of a quantised graph whose original has ``before``."""
        return max(before, _STATIC_OPSET) if self.static else before
