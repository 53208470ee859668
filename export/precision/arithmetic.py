"""Half-precision arithmetic on a CPU, as a GPU does it: products summed in float32, every result rounded to float16.

PyTorch has CPU kernels for float16, but its convolutions and batched products there are up to a hundred times slower
than float32. This mode computes both in float32 and rounds what they give, infinities included, so that a plan can be
tried where there is no GPU. A runtime that computes half-precision nodes in float32 hides overflow; this does not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .casts import any_half, to_float, to_half

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
        """Called by PyTorch for every operation."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and any_half(args):
            return _attention(*args, **kwargs)
        if func in PRODUCTS and any_half(args):
            return to_half(func(*map(to_float, args), **{name: to_float(value) for name, value in kwargs.items()}))
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """The operations that exporting attention gives, each rounded: both factors scaled, product, softmax, product."""
    assert dropout_p == 0.0
    assert not is_causal
    logits = attention_logits(query, key, scale)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    weights = logits.float().softmax(-1).half()
    return (weights.float() @ value.float()).half()


def attention_logits(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Scaled products as exported graphs compute them, queries and keys scaled before; in the tensors' own dtype."""
    root = (scale if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    product: Tensor = (query * root).float() @ (key * root).float().transpose(-2, -1)
    return product.to(query.dtype)
