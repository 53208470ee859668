"""How a model is trained: frozen settings that the run records."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from rsrefseg.engines.records import Record

from ..model.config import LoraSettings

_FINITE = sys.float_info.max
_AtLeast0 = Annotated[float, Meta(ge=0, le=_FINITE)]
_AtLeast1 = Annotated[int, Meta(ge=1)]
_Positive = Annotated[float, Meta(gt=0, le=_FINITE)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class Precision(StrEnum):
    """Arithmetic of the forward pass. ``auto`` uses bfloat16 where the device has it, else float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class LossWeights(Record, frozen=True, kw_only=True):
    """Weights of the loss terms. The paper uses ``bce`` alone; the others help to train from random weights."""

    bce: _AtLeast0 = 5.0
    dice: _AtLeast0 = 0.0
    coarse: _AtLeast0 = 0.0


class TrainConfig(Record, frozen=True, kw_only=True):
    """All that decides the trained weights, besides data and base. ``lora=None`` trains all weights.

    ``batch_size`` is the number of images that one process encodes at once; each image comes with up to
    ``phrases_per_image`` of its phrases, drawn again in each epoch. A step takes ``gradient_accumulation`` such batches
    on each process. ``gradient_checkpointing`` trades time for memory and does not change the result.
    """

    epochs: _AtLeast1 = 200
    batch_size: _AtLeast1 = 8
    phrases_per_image: _AtLeast1 = 4
    learning_rate: _Positive = 1e-4
    weight_decay: _AtLeast0 = 0.05
    warmup_epochs: _AtLeast0 = 5.0
    warmup_start: _Share = 0.01
    final_share: _Share = 0.001
    max_grad_norm: _Positive | None = None
    gradient_accumulation: _AtLeast1 = 1
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = LoraSettings()
    loss: LossWeights = LossWeights()
    precision: Precision = Precision.AUTO
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Meta(ge=0)] = 0
    validate_every_epochs: _AtLeast1 = 1
    checkpoint_every_steps: _AtLeast1 = 200


# Defaults for training from random weights, as the shipped tiny base was: all loss terms and a larger step.
FROM_SCRATCH: Mapping[str, Any] = {
    "epochs": 12,
    "phrases_per_image": 6,
    "learning_rate": 1e-3,
    "warmup_epochs": 0.5,
    "max_grad_norm": 1.0,
    "lora": None,
    "loss": {"bce": 2.0, "dice": 1.0, "coarse": 1.0},
}
