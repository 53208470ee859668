"""The transformer blocks of a model: what gradient checkpointing computes again and sharding splits by."""

from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..model.model import RSRefSeg


def transformer_blocks(model: RSRefSeg) -> tuple[nn.Module, ...]:
    """The layers of both SigLIP towers and the blocks of SAM's image encoder, in the order of the forward pass."""
    towers = ("siglip_vision.encoder.layers", "sam_encoder.image_encoder.blocks", "siglip_text.encoder.layers")
    return tuple(chain.from_iterable(model.get_submodule(tower).children() for tower in towers))


def checkpoint_blocks(model: RSRefSeg) -> None:
    """Keep only each block's input for the backward pass, which computes the rest again, dropout included.

    The blocks' ``forward`` is wrapped, not the blocks: names stay, and hooks on a block (sharding has some) run once.
    One way for both libraries, as ``transformers`` checkpoints its layers differently from release to release.
    """
    for block in transformer_blocks(model):
        block.forward = _computed_again(block)


def _computed_again(block: nn.Module) -> Any:
    forward = block.forward

    @wraps(forward)
    def forward_with_checkpoint(*args: Any, **kwargs: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return forward_with_checkpoint
