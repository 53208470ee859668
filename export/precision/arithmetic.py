"""A GPU's half-precision arithmetic on a CPU: products summed in float32, every result rounded to float16.

PyTorch's float16 convolutions and batched products are very slow on CPUs. This mode computes them in float32 and rounds
the results, including infinities, so that a plan can be tested without a GPU.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LAYERS: frozenset[Callable[..., Any]] = frozenset({F.linear, torch.conv2d, torch.conv_transpose2d})
PRODUCTS = LAYERS | {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.einsum}


class HalfArithmetic(TorchFunctionMode):
    """While active, products of float16 tensors are computed in float32 and rounded to float16."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Intercept an operation; PyTorch calls this method for each."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and _any_half(args):
            return _attention(*args, **kwargs)
        if func in PRODUCTS and _any_half(args):
            return to_half(func(*map(to_float, args), **{name: to_float(value) for name, value in kwargs.items()}))
        return func(*args, **kwargs)


class Fp32Sums(HalfArithmetic):
    """While active, products of float16 tensors are summed in float32, in a form that TensorRT recognises.

    TensorRT multiplies in float16 and sums in float32 where both factors are cast to float32 and the product is cast
    back at once. A bias must therefore be added after the cast.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Intercept an operation; PyTorch calls this method for each."""
        if func not in LAYERS or not _any_half(args):
            return super().__torch_function__(func, types, args, kwargs)
        named = dict(kwargs or {})
        bias = args[2] if len(args) > 2 else named.pop("bias", None)
        product = to_half(func(to_float(args[0]), to_float(args[1]), None, *args[3:], **named))
        if bias is None:
            return product
        return product + (bias if func is F.linear else bias.reshape(-1, 1, 1))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    **others: Any,
) -> Tensor:
    """Compute attention by the operations of exported graphs, each rounded: scaling, product, softmax, product."""
    assert not any(others.values()), "dropout and causal masks are for training"
    logits = attention_logits(query, key, scale)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    weights = logits.float().softmax(-1).half()
    return (weights.float() @ value.float()).half()


def attention_logits(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Compute scaled products like exported graphs, from scaled queries and keys, in the dtype of the inputs."""
    root = (scale if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    product: Tensor = (query * root).float() @ (key * root).float().transpose(-2, -1)
    return product.to(query.dtype)


def to_half(value: Any) -> Any:
    """Convert floating-point tensors to float16, also in a tuple or list; return anything else unchanged."""
    return _cast(value, torch.float16)


def to_float(value: Any) -> Any:
    """Convert floating-point tensors to float32, also in a tuple or list; return anything else unchanged."""
    return _cast(value, torch.float32)


def largest(tensor: Tensor) -> float:
    """Return the absolute maximum of a non-empty tensor, without a copy; infinity if a value is not finite."""
    low, high = (float(value) for value in tensor.detach().aminmax())
    return max(-low, high) if math.isfinite(low) and math.isfinite(high) else math.inf


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _any_half(values: Iterable[Any]) -> bool:
    return any(
        _any_half(value) if isinstance(value, tuple | list) else isinstance(value, Tensor) and value.dtype == torch.half
        for value in values
    )
