"""Operators that half precision needs in another form. In exact arithmetic all of them equal what they replace."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rsrefseg.prompter import ConvNormAct

_GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = _GELU_LINEAR * 0.044715


class TanhGelu(nn.Module):
    """GELU's tanh approximation as ``x * sigmoid(x * (a + b * x * x))``, with (1 + tanh u) / 2 = sigmoid(2 u).

    Finite for every finite float16: x * x passes 65,504 from |x| = 256 on, and the sigmoid of the infinity is the 0 or
    1 it should be. Nothing cancels, unlike in 1 + tanh near -1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, element by element."""
        return x * torch.sigmoid(x * (_GELU_LINEAR + _GELU_CUBIC * x * x))


class ScaledAttention(nn.Module):
    """The attention of SAM's mask decoder with queries and keys scaled before their product instead of after it.

    The unscaled product of 256 channels may pass 65,504 where the scaled logits do not.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.num_heads: int = original.num_heads
        self.q_proj: nn.Linear = original.q_proj
        self.k_proj: nn.Linear = original.k_proj
        self.v_proj: nn.Linear = original.v_proj
        self.out_proj: nn.Linear = original.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(P, N, C), (P, M, C), (P, M, C) -> (P, N, C)."""
        query, key, value = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
        attended = weights @ value
        result: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: Tensor) -> Tensor:
        """(P, N, C) -> (P, heads, N, C / heads)."""
        return torch.unflatten(x, 2, (self.num_heads, -1)).transpose(1, 2)


def fold_batch_norm(block: ConvNormAct) -> None:
    """Make a block's batch norm part of its convolution, computed in float64."""
    folded = fuse_conv_bn_eval(block.conv.double(), block.bn.double())
    block.conv = folded.float()
    block.set_submodule("bn", nn.Identity())
