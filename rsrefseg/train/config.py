"""How a model is trained: frozen, validated settings that go into the run's record."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rsrefseg.engines.errors import BadInputError

from ..model.config import LoraSettings

_SEEDS = 2**32
_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "phrases_per_image": 1,
    "gradient_accumulation": 1,
    "validate_every_epochs": 1,
    "checkpoint_every_steps": 1,
    "workers": 0,
    "seed": 0,
    "weight_decay": 0,
    "warmup_epochs": 0,
}


class Precision(StrEnum):
    """Arithmetic of the forward pass. ``auto`` takes bfloat16 where the device computes in it, else float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def _check_bounds(settings: object, least: Mapping[str, int]) -> None:
    """Refuse a field of ``settings`` below its least value, or not finite."""
    for name, bound in least.items():
        if not bound <= getattr(settings, name) < math.inf:
            raise BadInputError(f"{name} must be at least {bound}, not {getattr(settings, name)}")


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the loss terms. The paper's recipe is ``bce`` alone; the others help towers start from nothing."""

    bce: float = 5.0
    dice: float = 0.0
    coarse: float = 0.0

    def __post_init__(self) -> None:
        _check_bounds(self, {"bce": 0, "dice": 0, "coarse": 0})


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the trained weights, besides data and base. ``lora=None`` trains all weights.

    ``batch_size`` counts the images that one process takes at once; every image brings up to ``phrases_per_image`` of
    its phrases, drawn anew each epoch, so that the towers encode it once for all of them. A step is made of
    ``gradient_accumulation`` such batches on each process. ``gradient_checkpointing`` saves memory for time and changes
    no result.
    """

    epochs: int = 200
    batch_size: int = 8
    phrases_per_image: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 5.0
    warmup_start: float = 0.01
    final_share: float = 0.001
    max_grad_norm: float | None = None
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = LoraSettings()  # noqa: RUF009 (frozen)
    loss: LossWeights = LossWeights()
    precision: Precision = Precision.AUTO
    seed: int = 0
    workers: int = 0
    validate_every_epochs: int = 1
    checkpoint_every_steps: int = 200

    def __post_init__(self) -> None:
        _check_bounds(self, _LEAST)
        if not 0 < self.learning_rate < math.inf:
            raise BadInputError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise BadInputError(f"max_grad_norm must be positive, not {self.max_grad_norm}")
        for name in ("warmup_start", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.seed >= _SEEDS:
            raise BadInputError(f"seed must be below {_SEEDS}, not {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "TrainConfig":
        """Read what ``to_dict`` gave.

        Raises:
            BadInputError: a field is unknown or out of range.
        """
        try:
            rest = dict(value)
            lora = rest.pop("lora")
            return cls(
                lora=LoraSettings(**lora) if lora is not None else None,
                loss=LossWeights(**rest.pop("loss")),
                precision=Precision(rest.pop("precision")),
                **rest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"the training configuration cannot be read: {error}") from error


def from_scratch_config(**overrides: Any) -> TrainConfig:
    """The recipe of the shipped tiny base: all weights, all loss terms, a larger step."""
    settings: dict[str, Any] = {
        "epochs": 12,
        "phrases_per_image": 6,
        "learning_rate": 1e-3,
        "warmup_epochs": 0.5,
        "max_grad_norm": 1.0,
        "lora": None,
        "loss": LossWeights(bce=2.0, dice=1.0, coarse=1.0),
    }
    return TrainConfig(**(settings | overrides))
