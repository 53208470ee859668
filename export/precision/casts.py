"""Casts of whatever a module takes or gives, and how large it is."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def to_half(value: Any) -> Any:
    """Floating-point tensors in float16, also in a tuple or list; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(map(to_half, value))
    return value.half() if isinstance(value, Tensor) and value.is_floating_point() else value


def to_float(value: Any) -> Any:
    """Floating-point tensors in float32, also in a tuple or list; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(map(to_float, value))
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def any_half(values: Iterable[Any]) -> bool:
    """Whether there is a float16 tensor among some values, or in a tuple or list of them."""
    return any(
        any_half(value) if isinstance(value, tuple | list) else isinstance(value, Tensor) and value.dtype == torch.half
        for value in values
    )


def largest(tensor: Tensor) -> float:
    """Absolute maximum of a tensor that is not empty; infinite where a value is not finite. Makes no copy of it."""
    low, high = (float(value) for value in tensor.detach().aminmax())
    return max(-low, high) if math.isfinite(low) and math.isfinite(high) else math.inf
