"""SAM 2's image encoder and mask decoder on tokens, with constants folded."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...model.rsrefseg2.sam2 import Sam2Decoder, Sam2Encoder, decode_mask
from ..decoder import STRIDE, InferenceDecoder
from ..operators import ErfGelu
from ..projections import attention, folded_projections, fused_attention, linear


class WindowAttention(nn.Module):
    """Hiera's attention in windows that divide the grid, with the window partition.

    Args:
        original: source of the projections.
        window: side of the windows; 0 for attention over the whole grid.
        pooled: whether the maximum of 2 x 2 queries asks, so that the result has half the rows and columns.
        query_parts: parts of the queries of a global block.
        fused: write attention as one operator.
    """

    def __init__(self, original: Any, window: int, pooled: bool, query_parts: int = 1, fused: bool = False) -> None:
        super().__init__()
        self.window, self.pooled, self.query_parts, self.fused = window, pooled, query_parts, fused
        self.num_heads = original.num_attention_heads
        weights, biases = original.qkv.weight.chunk(3), original.qkv.bias.chunk(3)
        query, key, value = (linear(weight, bias, weight.dtype) for weight, bias in zip(weights, biases, strict=True))
        # A positive scale commutes with the maximum.
        self.q_proj, self.k_proj, self.v_proj, self.proj = folded_projections(
            query, key, value, original.proj, original.scale
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a grid of tokens, (N, H, W, C) float32; return (N, H, W, D), or half of H and W if pooled."""
        side, grid = self.window or x.shape[1], x.shape[1]
        count = grid // side
        query = self.q_proj(x)
        asked = side
        if self.pooled:
            query = F.max_pool2d(query.permute(0, 3, 1, 2), STRIDE).permute(0, 2, 3, 1)
            asked = side // STRIDE
        key, value = self._windows(self.k_proj(x), side), self._windows(self.v_proj(x), side)
        queries = self._windows(query, asked)
        if self.fused:
            queries, key, value = (part.transpose(1, 2).flatten(2) for part in (queries, key, value))
            tokens = fused_attention(queries, key, value, self.num_heads)
            merged = torch.unflatten(tokens, 2, (self.num_heads, -1)).transpose(1, 2)
        else:
            key = key.transpose(2, 3)
            parts = queries.chunk(self.query_parts, dim=2) if self.query_parts > 1 else (queries,)
            attended = [attention(part, key, value) for part in parts]
            merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        # (N windows, heads, asked asked, C) -> (N, H, W, heads C)
        merged = torch.unflatten(torch.unflatten(merged, 2, (asked, asked)), 0, (-1, count, count))
        merged = merged.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)
        result: Tensor = self.proj(merged)
        return result

    def _windows(self, x: Tensor, side: int) -> Tensor:
        """Reshape (N, H, W, heads C) to (N windows, heads, side side, C)."""
        count = x.shape[1] // side
        x = x.reshape(-1, count, side, count, side, self.num_heads, x.shape[3] // self.num_heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


class InferenceBlock(nn.Module):
    """A block of Hiera, with the same names except for its attention."""

    def __init__(self, original: Any, query_parts: int, fused: bool) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = original.layer_norm1, original.layer_norm2
        pooled, window = original.query_stride is not None, original.window_size
        self.attn = WindowAttention(original.attn, window, pooled, 1 if window else query_parts, fused)
        self.mlp = nn.Sequential(original.mlp.proj_in, ErfGelu(), original.mlp.proj_out)
        self.proj = getattr(original, "proj", None)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a grid of tokens, (N, H, W, C) float32."""
        normed = self.layer_norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
            if self.pooled:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), STRIDE).permute(0, 2, 3, 1)
        x = x + self.attn(normed)
        result: Tensor = x + self.mlp(self.layer_norm2(x))
        return result


class InferenceSam2Encoder(nn.Module):
    """``Sam2Encoder`` with position embeddings as a constant, and each pair of pointwise convolutions as one layer.

    Args:
        original: source of the weights; not usable afterwards.
        query_parts: parts of the queries of global blocks.
        fused: write attention as one operator.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    position_encoding: Tensor
    hiera: Any

    def __init__(self, original: Sam2Encoder, query_parts: int = 1, fused: bool = False) -> None:
        super().__init__()
        self.stage_ends = original.stage_ends
        self.register_buffer("pixel_mean", original.pixel_mean)
        self.register_buffer("pixel_std", original.pixel_std)
        hiera = self.hiera = original.hiera
        grid = hiera.config.image_size[0] // hiera.config.patch_stride[0]
        self.register_buffer("position_encoding", hiera._get_pos_embed((grid, grid)).detach())
        hiera.blocks = nn.ModuleList(InferenceBlock(block, query_parts, fused) for block in hiera.blocks)
        coarse, embedding, middle, fine = (conv for conv in original.convs if isinstance(conv, nn.Conv2d))
        self.convs = nn.ModuleList(
            (
                pointwise(coarse),
                pointwise(embedding, added=original.no_mem_embed),
                pointwise(middle, original.conv_s1),
                pointwise(fine, original.conv_s0),
            )
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images; argument and results are those of ``Sam2Encoder.forward``."""
        x = self.hiera.patch_embed((image.float() - self.pixel_mean) / self.pixel_std) + self.position_encoding
        maps = []
        for index, block in enumerate(self.hiera.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        coarse, embedding, middle, fine = (
            conv(each).permute(0, 3, 1, 2) for conv, each in zip(self.convs, reversed(maps), strict=True)
        )
        return embedding + F.interpolate(coarse, scale_factor=2.0, mode="nearest"), middle, fine


def pointwise(first: nn.Conv2d, second: nn.Conv2d | None = None, added: Tensor | None = None) -> nn.Linear:
    """Return one layer on tokens that equals one or two pointwise convolutions, computed in float64."""
    weight, bias = _matrix(first)
    if second is not None:
        outer, shift = _matrix(second)
        weight, bias = outer @ weight, outer @ bias + shift
    if added is not None:
        bias = bias + added.detach().double().flatten()
    return linear(weight, bias, first.weight.dtype)


def _matrix(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert convolution.bias is not None
    return convolution.weight.detach().double().flatten(1), convolution.bias.detach().double()


class InferenceSam2Decoder(InferenceDecoder):
    """``Sam2Decoder`` on tokens, with the same weights and module names.

    Args:
        original: source of the weights; not usable afterwards.
        fused: write attention as one operator.
    """

    def __init__(self, original: Sam2Decoder, fused: bool = False) -> None:
        super().__init__(original, fused)
        self.choose_mask = original.choose_mask

    def forward(  # type: ignore[override]
        self,
        image_embedding: Tensor,
        high_res_1: Tensor,
        high_res_0: Tensor,
        sparse_prompts: Tensor,
        mask_prompt: Tensor,
    ) -> Tensor:
        """Decode masks; arguments and result are those of ``Sam2Decoder.forward`` in eval mode."""
        hidden, keys = self.attend(image_embedding, sparse_prompts, mask_prompt)
        first, norm, act, second, last_act = self.mask_decoder.output_upscaling
        # As in ``InferenceDecoder``: token, pixel of the first convolution, pixel of the second, channel.
        side = self.grid_size
        middle = high_res_1.view(-1, high_res_1.shape[1], side, STRIDE, side, STRIDE).permute(0, 2, 4, 3, 5, 1)
        fine = high_res_0.view(-1, high_res_0.shape[1], side, STRIDE, STRIDE, side, STRIDE, STRIDE)
        fine = fine.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(1, 2).flatten(4, 5).flatten(2, 3)
        upscaled = torch.unflatten(first(keys), 2, (STRIDE**2, -1)) + middle.flatten(3, 4).flatten(1, 2)
        upscaled = torch.unflatten(second(act(norm(upscaled))), 3, (STRIDE**2, -1)) + fine
        pixels = last_act(upscaled).flatten(1, 3).transpose(1, 2)
        return self.to_grid(decode_mask(self.mask_decoder, hidden, pixels, self.choose_mask))
