"""SAM's mask decoder on tokens, without transposing to channels first and back.

Its convolutions have kernels as large as their strides, so each one is a linear layer from or to the 2 x 2 pixels of a
token. Only the mask prompt and the logits, one channel each, are rearranged to a grid.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..model.sam import ChannelLayerNorm, SamDecoder
from .projections import FoldedCrossAttention, linear

# Stride of all convolutions here except the last of downscaling, which is pointwise.
STRIDE = 2


class TokenLayerNorm(ChannelLayerNorm):
    """SAM's layer norm, applied to the channels of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C) over the last axis."""
        return self.channels_last(x)


class InferenceDecoder(nn.Module):
    """``SamDecoder`` on tokens, with the same weights and module names.

    Args:
        original: source of the weights; not usable afterwards.
        fused: write attention as one operator.
    """

    position_encoding: Tensor
    output_tokens: Tensor

    def __init__(self, original: SamDecoder, fused: bool = False) -> None:
        super().__init__()
        self.dense_prompt = original.dense_prompt
        self.grid_size = original.position_encoding.shape[-1]
        self.prompt_encoder = original.prompt_encoder
        self.mask_decoder = decoder = original.mask_decoder
        self.register_buffer("output_tokens", original.output_tokens().detach())
        self.register_buffer("position_encoding", original.position_encoding.flatten(2).transpose(1, 2).contiguous())
        for name, module in list(decoder.transformer.named_modules()):
            if hasattr(module, "internal_dim"):
                decoder.transformer.set_submodule(name, FoldedCrossAttention(module, fused))
        _put_on_tokens(decoder.output_upscaling)
        if self.dense_prompt:
            _put_on_tokens(self.prompt_encoder.mask_downscaling)

    def forward(self, image_embedding: Tensor, sparse_prompts: Tensor, mask_prompt: Tensor) -> Tensor:
        """Decode masks; arguments and result are those of ``SamDecoder.forward``."""
        hidden, keys = self.attend(image_embedding, sparse_prompts, mask_prompt)
        # (P, g g, 4, 4, D / 8): token, pixel of the first convolution, pixel of the second, channel.
        first, norm, act, second, last_act = self.mask_decoder.output_upscaling
        upscaled = act(norm(first(keys).unflatten(2, (STRIDE**2, -1))))
        upscaled = last_act(second(upscaled).unflatten(3, (STRIDE**2, -1))).flatten(1, 3)
        hyper = self.mask_decoder.output_hypernetworks_mlps[0](hidden[:, 1])
        return self.to_grid(upscaled @ hyper.unsqueeze(2))

    def attend(self, image_embedding: Tensor, sparse_prompts: Tensor, mask_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Run the transformer: tokens (P, output tokens + M, D) and image tokens (P, g g, D)."""
        # Added as tokens: OpenVINO fuses a sum of grids into the preceding convolution and then cannot broadcast one
        # image to several phrases.
        keys = image_embedding.flatten(2).transpose(1, 2) + self._dense_embedding(mask_prompt)
        # Pad and add: concatenating a constant would need an Expand to the number of phrases.
        room = F.pad(sparse_prompts, (0, 0, len(self.output_tokens), 0))
        prompts = room + F.pad(self.output_tokens, (0, 0, 0, sparse_prompts.shape[1]))
        queries = prompts
        transformer = self.mask_decoder.transformer
        for layer in transformer.layers:
            queries, keys = layer(queries=queries, keys=keys, query_pe=prompts, key_pe=self.position_encoding)
        attended = transformer.final_attn_token_to_image(q=queries + prompts, k=keys + self.position_encoding, v=keys)
        return transformer.norm_final_attn(queries + attended), keys

    def to_grid(self, logits: Tensor) -> Tensor:
        """Rearrange logits of 4 x 4 pixels a token, (P, g g 16, 1), to (P, 1, 4g, 4g)."""
        side = self.grid_size
        logits = logits.view(-1, side, side, STRIDE, STRIDE, STRIDE, STRIDE)
        return logits.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 1, side * STRIDE**2, side * STRIDE**2)

    def _dense_embedding(self, mask_prompt: Tensor) -> Tensor:
        """Encode mask prompts, (P, 1, 4g, 4g), to (P, g g, D)."""
        side = self.grid_size
        if not self.dense_prompt:
            nothing: Tensor = self.prompt_encoder.no_mask_embed.weight.view(1, 1, -1)
            return nothing + 0 * mask_prompt[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        first, norm, act, second, second_norm, second_act, last = self.prompt_encoder.mask_downscaling
        pixels = mask_prompt.view(-1, side, STRIDE, STRIDE, side, STRIDE, STRIDE).permute(0, 1, 4, 2, 5, 3, 6)
        rows = act(norm(first(pixels.reshape(-1, side**2, STRIDE**2, STRIDE**2))))
        embedding: Tensor = last(second_act(second_norm(second(rows.flatten(2)))))
        return embedding


def _put_on_tokens(layers: nn.Sequential) -> None:
    """Replace non-overlapping convolutions by linear layers and channel norms by norms over the last axis."""
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.ConvTranspose2d):
            # (in, out, y, x) -> (y, x, out; in)
            weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
            assert layer.bias is not None
            layers[index] = linear(weight, layer.bias.repeat(STRIDE**2), weight.dtype)
        elif isinstance(layer, nn.Conv2d):
            # (out, in, y, x) -> (out; y, x, in)
            weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
            layers[index] = linear(weight, layer.bias, weight.dtype)
        elif isinstance(layer, ChannelLayerNorm):
            layers[index] = TokenLayerNorm(layer)
