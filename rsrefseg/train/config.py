"""Training settings, which are frozen and recorded by the run."""

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
    """Arithmetic of the forward pass. ``auto`` uses half precision if the device supports it, otherwise float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class LossWeights(Record, frozen=True, kw_only=True):
    """Weights of the loss terms. The paper uses only ``bce``; the others help to train from random weights."""

    bce: _AtLeast0 = 5.0
    dice: _AtLeast0 = 0.0
    coarse: _AtLeast0 = 0.0


class TrainConfig(Record, frozen=True, kw_only=True):
    """Settings of a training besides data and initial weights. ``lora=None`` trains all weights.

    ``batch_size`` is the number of images per batch and process. Each image has up to ``phrases_per_image`` phrases,
    which are drawn again in each epoch. A step consists of ``gradient_accumulation`` batches per process.
    ``gradient_checkpointing`` trades time for memory without changing the result. ``compile`` runs ``torch.compile``.
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
    compile: bool = False
    lora: LoraSettings | None = LoraSettings()
    loss: LossWeights = LossWeights()
    precision: Precision = Precision.AUTO
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Meta(ge=0)] = 0
    validate_every_epochs: _AtLeast1 = 1
    checkpoint_every_steps: _AtLeast1 = 200


# Defaults for training from random weights, which the shipped tiny base used: all loss terms and larger steps.
FROM_SCRATCH: Mapping[str, Any] = {
    "epochs": 12,
    "phrases_per_image": 6,
    "learning_rate": 1e-3,
    "warmup_epochs": 0.5,
    "max_grad_norm": 1.0,
    "lora": None,
    "loss": {"bce": 2.0, "dice": 1.0, "coarse": 1.0},
}
