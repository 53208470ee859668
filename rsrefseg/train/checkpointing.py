"""Gradient checkpointing: less memory for more time, same result."""

from functools import partial
from itertools import chain

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..model.model import RSRefSeg


def transformer_blocks(model: RSRefSeg) -> tuple[nn.Module, ...]:
    """The layers of both SigLIP towers and the blocks of SAM's image encoder."""
    towers = ("siglip_vision.encoder.layers", "sam_encoder.image_encoder.blocks", "siglip_text.encoder.layers")
    return tuple(chain.from_iterable(model.get_submodule(tower).children() for tower in towers))


def checkpoint_blocks(model: RSRefSeg) -> None:
    """Keep only each block's input for the backward pass, which computes the rest again, dropout included.

    One way for both libraries, as ``transformers`` checkpoints its layers differently from release to release.
    """
    for block in transformer_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
