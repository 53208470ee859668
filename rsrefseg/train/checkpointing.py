"""Gradient checkpointing, which trades time for memory without changing the result."""

from functools import partial
from itertools import chain

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..model.model import RSRefSeg


def transformer_blocks(model: RSRefSeg) -> tuple[nn.Module, ...]:
    """Return the layers of both SigLIP towers and the blocks of SAM's image encoder."""
    towers = ("siglip_vision.encoder.layers", "sam_encoder.image_encoder.blocks", "siglip_text.encoder.layers")
    return tuple(chain.from_iterable(model.get_submodule(tower).children() for tower in towers))


def checkpoint_blocks(model: RSRefSeg) -> None:
    """Store only the input of each block; the backward pass recomputes the rest, with the same dropout.

    This covers both libraries in one way, because checkpointing in ``transformers`` differs between releases.
    """
    for block in transformer_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
