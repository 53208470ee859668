"""``fold_for_inference`` turns a stage of the published modules into the stage that is exported."""

import torch
from torch import Tensor, nn

from ..model.prompter import AttnPrompter
from ..model.rsrefseg2.prompter import CascadedPrompter
from ..model.rsrefseg2.sam2 import Sam2Decoder, Sam2Encoder
from ..model.sam import SamDecoder, SamEncoder
from ..model.siglip import SiglipText, SiglipVision
from .attention import AttentionChoice
from .decoder import InferenceDecoder
from .image_encoder import InferenceImageEncoder
from .operators import TanhGelu, rewrite_gelus
from .projections import FoldedSelfAttention
from .prompter import InferencePrompter
from .rsrefseg2.prompter import fold_prompter
from .rsrefseg2.sam2 import InferenceSam2Decoder, InferenceSam2Encoder

_PIXEL_RANGE = 255.0


def fold_for_inference(
    module: nn.Module, attention: AttentionChoice, fp16: bool = False, fused: bool = False
) -> nn.Module:
    """Fold computations that do not depend on the input into weights; equal in real arithmetic.

    Pixel normalisation is not folded into weights that become float16: many of them would be subnormal.

    Args:
        module: stage in eval mode; not usable afterwards.
        attention: form of the attention in SAM's image encoder; other stages ignore it.
        fp16: whether the stage will be converted to half precision.
        fused: write attention as one operator, which needs opset 23.

    Returns:
        A stage with the same inputs, outputs and names of its larger modules.
    """
    rewrite_gelus(module)
    match module:
        case SiglipVision():
            if not fp16:
                mean, std = module.pixel_mean * _PIXEL_RANGE, module.pixel_std * _PIXEL_RANGE
                # Normalisation commutes with the resize, which is linear with weights that sum to 1.
                fold_pixels(module.embeddings.get_submodule("patch_embedding"), mean, std)
                module.takes_pixels = True
            _fold_tower(module, fused)
        case SiglipText():
            _fold_tower(module, fused)
        case AttnPrompter():
            return InferencePrompter(module)
        case SamEncoder():
            if not fp16:
                # As for SigLIP, the normalisation commutes with a resize.
                fold_pixels(module.image_encoder.patch_embed.proj, module.pixel_mean, module.pixel_std)
                module.takes_pixels = True
            module.set_submodule("image_encoder", InferenceImageEncoder(module.image_encoder, attention, fused))
        case CascadedPrompter():
            fold_prompter(module, fused)
        case Sam2Encoder():
            # The patch embedding pads its input, so a folded mean would change the border.
            return InferenceSam2Encoder(module, attention.query_parts, fused)
        case Sam2Decoder():
            return InferenceSam2Decoder(module, fused)
        case SamDecoder():
            return InferenceDecoder(module, fused)
    return module


def fold_pixels(convolution: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Fold (x - mean) / std into a convolution without padding, computed in float64.

    Args:
        convolution: convolution of RGB pixels.
        mean: mean of each of 3 channels, on the 0 to 255 scale.
        std: standard deviation of each channel.
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
    """Position embeddings as a constant instead of a lookup."""

    def __init__(self, original: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(original.weight.detach(), requires_grad=False)

    def forward(self, _: Tensor) -> Tensor:
        """Return the table, (T, C)."""
        return self.weight


def _fold_tower(tower: SiglipVision | SiglipText, fused: bool) -> None:
    for layer in tower.encoder.get_submodule("layers").children():
        layer.set_submodule("self_attn", FoldedSelfAttention(layer.self_attn, fused))
        layer.set_submodule("mlp.activation_fn", TanhGelu())
    table = tower.embeddings.get_submodule("position_embedding")
    assert isinstance(table, nn.Embedding)
    tower.embeddings.set_submodule("position_embedding", PositionTable(table))
