"""SAM's image encoder on tokens: only the pixels and the neck's 3 x 3 convolution are channels first."""

import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from ..model.sam import ChannelLayerNorm
from .attention import AttentionChoice, AttentionForm, RelativePositionAttention
from .decoder import TokenLayerNorm
from .fused_attention import FusedRelativePositionAttention
from .projections import linear


class InferenceImageEncoder(nn.Module):
    """segment-anything's ``ImageEncoderViT`` on tokens, with the same weights and module names.

    The attention modules partition the windows, so that residual sums work on tokens: OpenVINO reorders grids for
    convolutions and back, twice in every block.

    Args:
        original: source of the weights; not usable afterwards.
        attention: form of the attention blocks.
        fused: write attention as one operator, except in the folded form.
    """

    def __init__(self, original: ImageEncoderViT, attention: AttentionChoice, fused: bool = False) -> None:
        super().__init__()
        self.patch_embed, self.blocks = original.patch_embed, original.blocks
        self.pos_embed = nn.Parameter(original.pos_embed.detach().flatten(1, 2), requires_grad=False)
        grid_size = original.pos_embed.shape[1]
        for block in self.blocks:
            form, parts = (attention.windowed, 1) if block.window_size else (attention.whole, attention.query_parts)
            # ONNX Runtime 1.31 computes Attention wrongly on CUDA where keys have more channels than values.
            one_node = fused and form is not AttentionForm.FOLDED
            kind = FusedRelativePositionAttention if one_node else RelativePositionAttention
            block.attn = kind(block.attn, form, grid_size, block.window_size, parts)
            block.window_size = 0
            if attention.mlp_parts > 1:
                block.mlp = MlpInParts(block.mlp, attention.mlp_parts)
        self.neck = TokenNeck(original.neck, grid_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels, (N, 3, S, S) float32, to the image embedding (N, D, g, g)."""
        x = self.patch_embed(pixels).flatten(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x)
        return embedding


class MlpInParts(nn.Module):
    """``MLPBlock`` on one part of the tokens at a time, so that the hidden activations fit into the cache.

    Args:
        original: source of the layers.
        parts: number of equal parts of the tokens.
    """

    def __init__(self, original: MLPBlock, parts: int) -> None:
        super().__init__()
        self.lin1, self.act, self.lin2, self.parts = original.lin1, original.act, original.lin2, parts

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to tokens (N, T, C)."""
        return torch.cat([self.lin2(self.act(self.lin1(part))) for part in x.chunk(self.parts, dim=1)], dim=1)


class TokenNeck(nn.Sequential):
    """SAM's neck with the pointwise convolution and the first norm on tokens.

    Args:
        original: source of the weights.
        grid_size: rows and columns of the token grid.
    """

    def __init__(self, original: nn.Sequential, grid_size: int) -> None:
        pointwise, norm, convolution, last_norm = original
        assert isinstance(pointwise, nn.Conv2d)
        assert isinstance(norm, ChannelLayerNorm)
        weight = pointwise.weight.flatten(1)
        super().__init__(linear(weight, pointwise.bias, weight.dtype), TokenLayerNorm(norm), convolution, last_norm)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens, (N, g g, C), to the image embedding (N, D, g, g)."""
        pointwise, norm, convolution, last_norm = self
        tokens = norm(pointwise(x)).transpose(1, 2)
        embedding: Tensor = last_norm(convolution(torch.unflatten(tokens, 2, (self.grid_size, self.grid_size))))
        return embedding
