"""Batch norm whose statistics are those of all processes' phrases together, on any backend."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the phrases of all processes: the result of one process that has them all.

    PyTorch's own ``SyncBatchNorm`` works on CUDA alone and cannot leave a process out. Processes may hold different
    numbers of phrases; one whose ``counted`` is false adds nothing to the statistics, but must take part.
    """

    counted: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """(P, C, H, W) -> (P, C, H, W); statistics in float32 at least, whatever the input."""
        if not self.training or not _several_processes():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        share = 1.0 if self.counted else 0.0
        size = wide.new_tensor([share * x.numel() / x.shape[1]])
        totals = _add_up(torch.cat([share * wide.sum((0, 2, 3)), size]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance = _add_up(share * centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as ``nn.BatchNorm2d`` does (with the unbiased variance)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class _AddUp(torch.autograd.Function):
    """Sum over processes; every process's loss depends on every summand, so gradients are summed the same way."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _sum_over_processes(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_processes(gradients[0])


def share_batch_norms(model: nn.Module) -> None:
    """Turn every batch norm of ``model`` into a shared one, in place; parameters, buffers and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def count_phrases(model: nn.Module, counted: bool) -> None:
    """Say whether this process's next phrases count in the shared statistics."""
    for module in model.modules():
        if isinstance(module, SharedBatchNorm):
            module.counted = counted


def _add_up(x: Tensor) -> Tensor:
    total: Tensor = _AddUp.apply(x)
    return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
