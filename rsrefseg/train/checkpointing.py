"""Gradient checkpointing, which trades time for memory without changing the result."""

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..model.model import RSRefSeg

# Attention weights in memory at once: 128 MiB in float32. One global block of SAM at 1024 px has six times as many.
_MAX_WEIGHTS = 1 << 25


def transformer_blocks(model: RSRefSeg) -> tuple[nn.Module, ...]:
    """Return the layers of both SigLIP towers and the blocks of SAM's image encoder."""
    blocks = "sam_encoder.image_encoder.blocks" if model.config.rsrefseg2 is None else "sam_encoder.hiera.blocks"
    towers = ("siglip_vision.encoder.layers", blocks, "siglip_text.encoder.layers")
    return tuple(chain.from_iterable(model.get_submodule(tower).children() for tower in towers))


def checkpoint_blocks(model: RSRefSeg) -> None:
    """Store only the input of each block; the backward pass recomputes the rest, with the same dropout.

    SAM's attention is computed a few heads at a time. This covers both libraries in one way, because checkpointing in
    ``transformers`` differs between releases.
    """
    for block in transformer_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        for module in block.modules():
            if isinstance(module, Attention):
                module.forward = partial(_attend_in_parts, module, module.forward)


def _attend_in_parts(attention: Attention, attend: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute SAM's attention of x (B, H, W, C) in parts of at most ``_MAX_WEIGHTS`` weights, but whole heads.

    ``attend`` is the published computation, which is used where one part is enough. Each part's weights are recomputed
    in the backward pass.
    """
    batch, height, width, _ = x.shape
    tokens, heads = height * width, batch * attention.num_heads
    if heads * tokens**2 <= _MAX_WEIGHTS:
        return attend(x)
    qkv = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    parts = zip(*(part.split(max(1, _MAX_WEIGHTS // tokens**2)) for part in qkv.flatten(1, 2).unbind()), strict=True)
    compute = partial(checkpoint, _attend_heads, attention, (height, width), use_reentrant=False)
    attended = torch.cat([compute(*part) for part in parts]).view(batch, attention.num_heads, tokens, -1)
    projected: Tensor = attention.proj(attended.transpose(1, 2).reshape(batch, height, width, -1))
    return projected


def _attend_heads(attention: Attention, size: tuple[int, int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend over (H, W) tokens with relative positions; query, key, value and result are (heads, H * W, c)."""
    weights = (query * attention.scale) @ key.transpose(-2, -1)
    weights = add_decomposed_rel_pos(weights, query, attention.rel_pos_h, attention.rel_pos_w, size, size)
    attended: Tensor = weights.softmax(dim=-1) @ value
    return attended
