"""Batch norm whose statistics cover all processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over the phrases of all processes.

    Unlike ``SyncBatchNorm``, it runs on any device and can exclude a process: if ``counted`` is false, the phrases of
    the process do not count, but it must still call ``forward``. Processes may have different numbers of phrases.
    """

    counted: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (P, C, H, W) with statistics in float32 or wider."""
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
        with torch.no_grad():  # running statistics as in nn.BatchNorm2d
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.get_buffer("num_batches_tracked").add_(1)
            for name, value in (("running_mean", mean), ("running_var", unbiased)):
                running = self.get_buffer(name)
                running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over processes. The loss of each process depends on every summand, so gradients are summed too."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


def share_batch_norms(model: nn.Module) -> None:
    """Convert every batch norm of ``model`` to ``SharedBatchNorm`` in place, with the same parameters and names."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def count_phrases(model: nn.Module, counted: bool) -> None:
    """Set whether the next phrases of this process count in the shared statistics."""
    for module in model.modules():
        if isinstance(module, SharedBatchNorm):
            module.counted = counted
