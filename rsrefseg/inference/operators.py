"""Operators in other, mathematically equal forms, which runtimes fuse or which stay finite in half precision."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..model.prompter import ConvNormAct

_GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = _GELU_LINEAR * 0.044715


class ErfGelu(nn.Module):
    """``torch.nn.GELU`` as (x / 2) (1 + erf(x / sqrt 2)), which ONNX Runtime fuses because x is halved first."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise to a tensor of any shape."""
        return (x * 0.5) * (torch.erf(x / math.sqrt(2)) + 1)


class TanhGelu(nn.Module):
    """GELU's tanh approximation as (x / 2) (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which runtimes fuse."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise to a tensor of any shape."""
        return (x * 0.5) * (torch.tanh((x + x**3 * 0.044715) * math.sqrt(2 / math.pi)) + 1)


class SigmoidGelu(nn.Module):
    """GELU's tanh approximation as ``x * sigmoid(x * (a + b * x * x))``, with (1 + tanh u) / 2 = sigmoid(2 u).

    The result is finite for every finite float16: x * x overflows from |x| = 256 on, where the sigmoid of infinity is
    the correct 0 or 1. Unlike 1 + tanh near -1, no subtraction cancels digits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise to a tensor of any shape."""
        return x * torch.sigmoid(x * (_GELU_LINEAR + _GELU_CUBIC * x * x))


def rewrite_gelus(module: nn.Module) -> None:
    """Replace every ``torch.nn.GELU`` in a module, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.GELU):
            module.set_submodule(name, ErfGelu() if part.approximate == "none" else TanhGelu())


def fold_batch_norm(block: ConvNormAct) -> None:
    """Fold the batch norm of a block into its convolution, computed in float64; a no-op if already folded."""
    if isinstance(block.bn, nn.BatchNorm2d):
        dtype = block.conv.weight.dtype
        folded = fuse_conv_bn_eval(block.conv.double(), block.bn.double())
        block.conv = folded.to(dtype)
        block.set_submodule("bn", nn.Identity())
