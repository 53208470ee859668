"""Operators that half precision needs in another form. In exact arithmetic all of them equal what they replace."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..model.prompter import ConvNormAct

_GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = _GELU_LINEAR * 0.044715


class SigmoidGelu(nn.Module):
    """GELU's tanh approximation as ``x * sigmoid(x * (a + b * x * x))``, with (1 + tanh u) / 2 = sigmoid(2 u).

    Finite for every finite float16: x * x passes 65,504 from |x| = 256 on, and the sigmoid of the infinity is the 0 or
    1 it should be. Nothing cancels, unlike in 1 + tanh near -1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, element by element."""
        return x * torch.sigmoid(x * (_GELU_LINEAR + _GELU_CUBIC * x * x))


def fold_batch_norm(block: ConvNormAct) -> None:
    """Make a block's batch norm part of its convolution, computed in float64; one that is folded stays so."""
    if isinstance(block.bn, nn.BatchNorm2d):
        dtype = block.conv.weight.dtype
        folded = fuse_conv_bn_eval(block.conv.double(), block.bn.double())
        block.conv = folded.to(dtype)
        block.set_submodule("bn", nn.Identity())
