"""AttnPrompter with the first convolution before the filters instead of after them."""

import torch
from torch import Tensor, nn

from ..model.prompter import AttnPrompter, ConvNormAct
from .operators import fold_batch_norm
from .projections import linear


class FilteredProjection(nn.Module):
    """The convolution of the locally filtered, globally filtered and plain features.

    A filter is one value per token and commutes with the pointwise convolution. Projecting before filtering runs once
    per image instead of once per phrase and needs no concatenation.
    """

    def __init__(self, original: ConvNormAct) -> None:
        super().__init__()
        fold_batch_norm(original)
        assert original.conv.bias is not None
        parts = original.conv.weight.flatten(1).chunk(3, dim=1)
        self.conv = linear(torch.cat(parts), None, original.conv.weight.dtype)
        self.bias = nn.Parameter(original.conv.bias.detach(), requires_grad=False)
        self.act = original.act

    def forward(self, clip_features: Tensor, local_filter: Tensor, global_filter: Tensor) -> Tensor:
        """Project features (1 or P, T, C) under two filters (P, T, 1) to (P, T, D)."""
        under_local, under_global, plain = self.conv(clip_features).chunk(3, dim=-1)
        result: Tensor = self.act(under_local * local_filter + under_global * global_filter + (plain + self.bias))
        return result


class InferencePrompter(AttnPrompter):
    """``AttnPrompter`` with the first convolution before the filters, with the same weights and module names."""

    down_channel: FilteredProjection  # type: ignore[assignment]

    def __init__(self, original: AttnPrompter) -> None:
        nn.Module.__init__(self)
        self.grid_size, self.mask_size = original.grid_size, original.mask_size
        self.logit_scale, self.logit_bias = original.logit_scale, original.logit_bias
        self.down_channel = FilteredProjection(original.down_channel)
        self.down_spatial = original.down_spatial
        for block in self.down_spatial:
            if isinstance(block, ConvNormAct):
                fold_batch_norm(block)
        self.register_buffer("grid_encoding", original.grid_encoding)

    def _attended_grid(self, clip_features: Tensor, local_filter: Tensor, global_filter: Tensor) -> Tensor:
        return self._to_grid(self.down_channel(clip_features, local_filter, global_filter))
