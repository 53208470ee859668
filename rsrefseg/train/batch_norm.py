"""Batch norm over the phrases of all processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the result of one process that has the phrases of all.

    PyTorch's ``SyncBatchNorm`` runs on CUDA only and cannot leave a process out. Processes may have different numbers
    of phrases; one whose ``counted`` is false adds nothing to the statistics but must take part.
    """

    counted: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """(P, C, H, W) -> (P, C, H, W); statistics in float32 or wider."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        share = 1.0 if self.counted else 0.0
        size = wide.new_tensor([share * x.numel() / x.shape[1]])
        totals: Tensor = _Sum.apply(torch.cat([share * wide.sum((0, 2, 3)), size]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance: Tensor = _Sum.apply(share * centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():  # the running statistics, as nn.BatchNorm2d keeps them
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.get_buffer("num_batches_tracked").add_(1)
            for name, value in (("running_mean", mean), ("running_var", unbiased)):
                running = self.get_buffer(name)
                running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over processes. Every process's loss depends on every summand, so gradients are summed as well."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


def share_batch_norms(model: nn.Module) -> None:
    """Make every batch norm of ``model`` a ``SharedBatchNorm``, in place; parameters, buffers and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def count_phrases(model: nn.Module, counted: bool) -> None:
    """Set whether this process's next phrases count in the shared statistics."""
    for module in model.modules():
        if isinstance(module, SharedBatchNorm):
            module.counted = counted
