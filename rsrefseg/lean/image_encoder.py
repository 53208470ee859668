"""SAM's image encoder on tokens: channels first for the pixels, and for the one convolution that looks around."""

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from rsrefseg.attention import AttentionChoice, choose_attention
from rsrefseg.lean.decoder import TokenLayerNorm
from rsrefseg.projections import linear
from rsrefseg.sam import ChannelLayerNorm


class LeanImageEncoder(nn.Module):
    """What segment-anything's ``ImageEncoderViT`` computes, from its weights, under its names.

    Sums of grids would make OpenVINO turn them to channels first and back, twice in every block.

    Args:
        original: whose weights are used; it is not fit for anything else afterwards.
        attention: the form that its blocks get.
        fused: write attention as one operator.
    """

    def __init__(self, original: ImageEncoderViT, attention: AttentionChoice, fused: bool = False) -> None:
        super().__init__()
        choose_attention(original, attention, fused)
        self.patch_embed, self.blocks = original.patch_embed, original.blocks
        self.pos_embed = nn.Parameter(original.pos_embed.detach().flatten(1, 2), requires_grad=False)
        self.neck = LeanNeck(original.neck, original.img_size // original.patch_embed.proj.stride[0])

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D, g, g)."""
        x = self.patch_embed(pixels).flatten(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x)
        return embedding


class LeanNeck(nn.Sequential):
    """SAM's neck with its pointwise convolution and the first norm on tokens.

    Args:
        original: whose weights are used.
        grid_size: of the tokens it will see.
    """

    def __init__(self, original: nn.Sequential, grid_size: int) -> None:
        pointwise, norm, convolution, last_norm = original
        assert isinstance(pointwise, nn.Conv2d)
        assert isinstance(norm, ChannelLayerNorm)
        weight = pointwise.weight.flatten(1)
        super().__init__(linear(weight, pointwise.bias, weight.dtype), TokenLayerNorm(norm), convolution, last_norm)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, g g, C) -> (N, D, g, g)."""
        pointwise, norm, convolution, last_norm = self
        tokens = norm(pointwise(x)).transpose(1, 2)
        embedding: Tensor = last_norm(convolution(torch.unflatten(tokens, 2, (self.grid_size, self.grid_size))))
        return embedding
