"""AttnPrompter: filters visual features by text and turns them into prompts for SAM (paper, section II-C)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig


class ConvNormAct(nn.Sequential):
    """Convolution without bias, followed by batch norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU()


class AttnPrompter(nn.Module):
    """Equations 3 (attended features) and 4 (sparse and dense prompts) of the paper.

    ``logit_scale`` (a logarithm) and ``logit_bias`` are SigLIP's parameters. ``grid_encoding`` is SAM's positional
    encoding sampled on the SigLIP grid, a constant that ``RSRefSeg`` copies from the prompt encoder.
    """

    grid_encoding: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, prompt_channels = config.siglip.vision.hidden_size, config.sam.prompt_channels
        self.grid_size = config.siglip.grid_size
        self.mask_size = config.sam.mask_size
        # Initial values of SigLIP (Sigmoid Loss for Language Image Pre-Training, section 3.2): t' = log 10, b = -10.
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.tensor([value])) for value in (2.302585, -10.0))
        self.down_channel = ConvNormAct(3 * channels, prompt_channels, kernel_size=1)
        self.down_spatial = nn.Sequential(
            ConvNormAct(prompt_channels, prompt_channels, kernel_size=3, stride=2),
            ConvNormAct(prompt_channels, prompt_channels, kernel_size=3, stride=2),
            nn.Conv2d(prompt_channels, prompt_channels, kernel_size=1),
        )
        self.register_buffer("grid_encoding", torch.zeros(1, prompt_channels, self.grid_size, self.grid_size))

    def forward(
        self, clip_features: Tensor, word_features: Tensor, sentence_feature: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the prompts of P phrases for one image, or for P images with one phrase each.

        Args:
            clip_features: (1 or P, T, C) float32.
            word_features: (P, L, C) float32.
            sentence_feature: (P, C) float32.
            token_mask: (P, L) bool, words whose activations are averaged; at least one per phrase is true.

        Returns:
            sparse_prompts (P, M, D) float32 and mask_prompt (P, 1, H, W) float32, the raw global logit map.
        """
        # Words by patches, not patches by words: with one image, a single product covers the words of all phrases.
        directions = self.logit_scale.exp() * _unit(clip_features).transpose(1, 2)
        word_logits = _unit(word_features) @ directions + self.logit_bias
        sentence_logits = _unit(sentence_feature).unsqueeze(1) @ directions + self.logit_bias

        weight = token_mask.to(clip_features.dtype).unsqueeze(2)
        local_activation = (word_logits.sigmoid() * weight).sum(1) / weight.sum(1)
        # mean_l(A_l * v) = mean_l(A_l) * v: the average needs no (P, L, T, C) tensor.
        local_filter, global_filter = (1 + local_activation) / 2, sentence_logits.sigmoid().squeeze(1)
        grid = self._attended_grid(clip_features, local_filter.unsqueeze(2), global_filter.unsqueeze(2))
        sparse_prompts = self.down_spatial(grid + self.grid_encoding).flatten(2).transpose(1, 2)
        mask_prompt = F.interpolate(
            torch.unflatten(sentence_logits, 2, (self.grid_size, self.grid_size)),
            size=(self.mask_size, self.mask_size),
            mode="bilinear",
            align_corners=False,
        )
        return sparse_prompts, mask_prompt

    def _attended_grid(self, clip_features: Tensor, local_filter: Tensor, global_filter: Tensor) -> Tensor:
        """Project features (1 or P, T, C), filtered by each (P, T, 1) filter and unfiltered, to (P, D, G, G)."""
        filtered = [clip_features * local_filter, clip_features * global_filter]
        attended = torch.cat([*filtered, clip_features.expand_as(filtered[0])], dim=-1)
        grid: Tensor = self.down_channel(self._to_grid(attended))
        return grid

    def _to_grid(self, tokens: Tensor) -> Tensor:
        """Reshape (P, T, C) in row-major order to (P, C, G, G)."""
        return torch.unflatten(tokens.transpose(1, 2), 2, (self.grid_size, self.grid_size))


def _unit(x: Tensor) -> Tensor:
    """Normalise like ``F.normalize`` over the last axis, without expanding the length to the shape of ``x``."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12)
