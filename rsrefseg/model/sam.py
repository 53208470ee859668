"""The stages ``sam_encoder`` and ``sam_decoder``, built from ``segment-anything``."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SAM_MLP_RATIO, SamConfig
from .preprocessing import Preprocessing

PIXEL_RANGE = 255.0


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W), computed by ``F.layer_norm``.

    Parameters and result equal those of SAM's ``LayerNorm2d``, whose separate mean and square overflow in half
    precision. This module exports as one LayerNormalization between two transposes.
    """

    def __init__(self, original: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return self.channels_last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def channels_last(self, x: Tensor) -> Tensor:
        """Normalise (N, ..., C) over the last axis."""
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def _replace_layer_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, LayerNorm2d):
            setattr(module, name, ChannelLayerNorm(child))
        else:
            _replace_layer_norms(child)


class SamEncoder(nn.Module):
    """Normalise and resize an image and compute SAM's image embedding with the ViT and its neck.

    If ``takes_pixels``, the weights of the patch embedding include the normalisation and take pixels of 0 to 255.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        size = config.image_size
        self.resize_to = None if preprocessing.image_size in (None, size) else (size, size)
        self.takes_pixels = False
        self.image_encoder = ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=SAM_MLP_RATIO,
            out_chans=config.prompt_channels,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_attn_indexes,
        )
        _replace_layer_norms(self)
        for name, values in (("mean", preprocessing.sam_mean), ("std", preprocessing.sam_std)):
            pixels = torch.tensor([value * PIXEL_RANGE for value in values]).view(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: (N, 3, S, S) uint8, RGB.

        Returns:
            image_embedding (N, D, g, g) float32.
        """
        pixels = image.float() if self.takes_pixels else (image.float() - self.pixel_mean) / self.pixel_std
        if self.resize_to is not None:
            pixels = F.interpolate(pixels, size=self.resize_to, mode="bilinear", align_corners=False)
        embedding: Tensor = self.image_encoder(pixels)
        return embedding


class SamDecoder(nn.Module):
    """Decode prompts to mask logits with SAM's mask-prompt encoder and the single-mask part of its decoder.

    ``position_encoding`` is SAM's positional encoding of the image embedding's grid, stored as a tensor so that no
    exported graph computes it; ``RSRefSeg.refresh_position_encodings`` sets it.
    """

    position_encoding: Tensor

    def __init__(self, config: SamConfig, dense_prompt: bool) -> None:
        super().__init__()
        self.dense_prompt = dense_prompt
        grid = (config.grid_size, config.grid_size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.prompt_channels,
            image_embedding_size=grid,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=config.prompt_channels,
                mlp_dim=config.decoder_mlp_dim,
                num_heads=config.decoder_num_heads,
            ),
            transformer_dim=config.prompt_channels,
            iou_head_depth=3,
            iou_head_hidden_dim=config.prompt_channels,
        )
        _replace_layer_norms(self)
        for module in self.mask_decoder.transformer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.decoder_norm_epsilon
        self.register_buffer("position_encoding", torch.zeros(1, config.prompt_channels, *grid))

    def forward(self, image_embedding: Tensor, sparse_prompts: Tensor, mask_prompt: Tensor) -> Tensor:
        """Decode P masks on one image, or one mask on each of P images, from the first mask token.

        Args:
            image_embedding: (1 or P, D, g, g) float32.
            sparse_prompts: (P, M, D) float32.
            mask_prompt: (P, 1, 4g, 4g) float32 logits.

        Returns:
            mask_logits (P, 1, 4g, 4g) float32.
        """
        hidden, grid = self.attend(image_embedding, sparse_prompts, mask_prompt)
        upscaled = self.mask_decoder.output_upscaling(grid)
        hyper = self.mask_decoder.output_hypernetworks_mlps[0](hidden[:, 1])
        logits: Tensor = hyper.unsqueeze(1) @ upscaled.flatten(2)
        mask_logits: Tensor = torch.unflatten(logits, 2, upscaled.shape[-2:])
        return mask_logits

    def output_tokens(self) -> Tensor:
        """Return the learned tokens, (5, D): IoU, four masks."""
        return torch.cat([self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight])

    def attend(self, image_embedding: Tensor, sparse_prompts: Tensor, mask_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Run the transformer: tokens (P, output tokens + M, D) and image features (P, D, g, g)."""
        source = image_embedding + self._dense_embedding(mask_prompt)
        outputs = self.output_tokens().unsqueeze(0).expand(sparse_prompts.shape[0], -1, -1)
        tokens = torch.cat([outputs, sparse_prompts], dim=1)
        hidden, source_tokens = self.mask_decoder.transformer(source, self.position_encoding, tokens)
        return hidden, torch.unflatten(source_tokens.transpose(1, 2), 2, source.shape[-2:])

    def _dense_embedding(self, mask_prompt: Tensor) -> Tensor:
        if self.dense_prompt:
            embedding: Tensor = self.prompt_encoder.mask_downscaling(mask_prompt)
            return embedding
        # Adding zeros keeps the phrase axis and the graph input without changing the learned "no mask" embedding.
        nothing: Tensor = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        return nothing + 0 * mask_prompt[:, :, ::4, ::4]
