"""``make_lean``: a stage of the published modules becomes the one that is exported."""

import torch
from torch import Tensor, nn

from ..model import siglip
from ..model.prompter import AttnPrompter
from ..model.sam import SamDecoder, SamEncoder
from ..model.siglip import SiglipText, SiglipVision
from .attention import AttentionChoice
from .decoder import LeanDecoder
from .gelu import TanhGelu, rewrite_gelus
from .image_encoder import LeanImageEncoder
from .projections import FoldedSelfAttention
from .prompter import LeanPrompter

_PIXEL_RANGE = 255.0


def make_lean(module: nn.Module, attention: AttentionChoice, half: bool = False, fused: bool = False) -> nn.Module:
    """Fold what does not depend on the input; equal in real arithmetic, and proven so in float64.

    The pixels' scale stays out of weights that will be halved: divided by 58 (SAM) or 127.5 (SigLIP), a tenth to nine
    tenths of them become subnormal, and the convolution's error, then a difference of large sums, two to four times as
    large (3.5e-4 -> 7e-4 to 1.3e-3 relative L2).

    Args:
        module: a stage in eval mode; it is not fit for anything else afterwards.
        attention: the form that SAM's image encoder gets.
        half: whether half precision is to be written in it.
        fused: write attention as one operator, which needs opset 23.

    Returns:
        The stage with the same inputs, outputs and names of its larger parts.
    """
    rewrite_gelus(module)
    match module:
        case SiglipVision():
            if not half:
                mean, std = (torch.full((3,), value * _PIXEL_RANGE) for value in (siglip.IMAGE_MEAN, siglip.IMAGE_STD))
                # Resizing is linear and its weights add up to 1: it does not matter on which side of it this is done.
                fold_pixels(module.embeddings.get_submodule("patch_embedding"), mean, std)
                module.takes_pixels = True
            _fold_tower(module, fused)
        case SiglipText():
            _fold_tower(module, fused)
        case AttnPrompter():
            return LeanPrompter(module)
        case SamEncoder():
            if not half:
                fold_pixels(module.image_encoder.patch_embed.proj, module.pixel_mean, module.pixel_std)
                module.takes_pixels = True
            module.set_submodule("image_encoder", LeanImageEncoder(module.image_encoder, attention, fused))
        case SamDecoder():
            return LeanDecoder(module, fused)
    return module


def fold_pixels(convolution: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Make (x - mean) / std part of a convolution without padding, computed in float64.

    Args:
        convolution: of RGB pixels.
        mean: of each channel, of pixels as they come.
        std: likewise.
    """
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.padding in ((0, 0), "valid")
    dtype = convolution.weight.dtype
    weight = convolution.weight.detach().double() / std.double().view(1, -1, 1, 1)
    shift = (weight * mean.double().view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    bias = convolution.bias.detach().double() if convolution.bias is not None else torch.zeros_like(shift)
    convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    convolution.bias = nn.Parameter((bias - shift).to(dtype), requires_grad=False)


class PositionTable(nn.Module):
    """Position embeddings as the constant they are, instead of looked up."""

    def __init__(self, original: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(original.weight.detach(), requires_grad=False)

    def forward(self, _: Tensor) -> Tensor:
        """(T, C), whatever is asked for."""
        return self.weight


def _fold_tower(tower: SiglipVision | SiglipText, fused: bool) -> None:
    for layer in tower.encoder.get_submodule("layers").children():
        layer.set_submodule("self_attn", FoldedSelfAttention(layer.self_attn, fused))
        layer.set_submodule("mlp.activation_fn", TanhGelu())
    table = tower.embeddings.get_submodule("position_embedding")
    assert isinstance(table, nn.Embedding)
    tower.embeddings.set_submodule("position_embedding", PositionTable(table))
