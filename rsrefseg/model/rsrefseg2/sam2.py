"""The stages ``sam_encoder`` and ``sam_decoder`` of RSRefSeg 2: SAM 2.1 for images, without its video memory.

The encoder is built from ``transformers``. The decoder is segment-anything's, which SAM 2 extends by a token for an
object score and by two maps of higher resolution.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam2HieraDetConfig, Sam2VisionConfig, Sam2VisionModel

from ..config import SAM_MLP_RATIO, RSRefSeg2Config, SamConfig
from ..preprocessing import Preprocessing
from ..sam import PIXEL_RANGE, SamDecoder

# A mask is stable if its area changes by less than 2% between these thresholds (SAM 2's predictor).
STABILITY_DELTA, STABILITY_THRESHOLD = 0.05, 0.98


class Sam2Encoder(nn.Module):
    """Normalise an image and compute SAM 2's image embedding and its two finer maps with Hiera and its neck."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig, second: RSRefSeg2Config, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.hiera: Any = _hiera(config, second)
        self.stage_ends = tuple(sum(second.blocks[: stage + 1]) - 1 for stage in range(4))
        channels, widths = config.prompt_channels, [config.embed_dim << stage for stage in range(4)]
        # From the coarsest stage to the finest, as published.
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in reversed(widths))
        self.conv_s0, self.conv_s1 = nn.Conv2d(channels, channels // 8, 1), nn.Conv2d(channels, channels // 4, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, channels))
        for name, values in (("mean", preprocessing.sam_mean), ("std", preprocessing.sam_std)):
            pixels = torch.tensor([value * PIXEL_RANGE for value in values]).view(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images.

        Args:
            image: (N, 3, S, S) uint8, RGB.

        Returns:
            image_embedding (N, D, g, g), high_res_1 (N, D / 4, 2g, 2g) and high_res_0 (N, D / 8, 4g, 4g), float32.
        """
        x = self.hiera.patch_embed((image.float() - self.pixel_mean) / self.pixel_std)
        x = x + self.hiera._get_pos_embed(x.shape[1:3])
        maps = []
        for index, block in enumerate(self.hiera.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x.permute(0, 3, 1, 2))
        coarse, embedding, middle, fine = (conv(each) for conv, each in zip(self.convs, reversed(maps), strict=True))
        embedding = embedding + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return embedding + self.no_mem_embed.view(1, -1, 1, 1), self.conv_s1(middle), self.conv_s0(fine)


class Sam2Decoder(SamDecoder):
    """``SamDecoder`` with the finer maps of SAM 2 and its choice between four masks.

    If the first mask is not stable, the result is that of the other three with the best predicted IoU. It is always the
    first mask in training mode, or if ``RSRefSeg2Config.choose_mask`` is false.
    """

    def __init__(self, config: SamConfig, second: RSRefSeg2Config) -> None:
        super().__init__(config, dense_prompt=True)
        self.choose_mask = second.choose_mask
        self.obj_score_token = nn.Embedding(1, config.prompt_channels)

    def output_tokens(self) -> Tensor:
        """Return the learned tokens, (6, D): object score, IoU, four masks."""
        return torch.cat([self.obj_score_token.weight, super().output_tokens()])

    def forward(  # type: ignore[override]
        self,
        image_embedding: Tensor,
        high_res_1: Tensor,
        high_res_0: Tensor,
        sparse_prompts: Tensor,
        mask_prompt: Tensor,
    ) -> Tensor:
        """Decode P masks on one image, or one mask on each of P images.

        Args:
            image_embedding: (1 or P, D, g, g) float32.
            high_res_1: (1 or P, D / 4, 2g, 2g) float32.
            high_res_0: (1 or P, D / 8, 4g, 4g) float32.
            sparse_prompts: (P, M, D) float32.
            mask_prompt: (P, 1, 4g, 4g) float32 logits.

        Returns:
            mask_logits (P, 1, 4g, 4g) float32.
        """
        hidden, grid = self.attend(image_embedding, sparse_prompts, mask_prompt)
        first, norm, act, second, last_act = self.mask_decoder.output_upscaling
        upscaled = last_act(second(act(norm(first(grid) + high_res_1))) + high_res_0)
        chosen = decode_mask(self.mask_decoder, hidden, upscaled.flatten(2), self.choose_mask and not self.training)
        mask_logits: Tensor = torch.unflatten(chosen.unsqueeze(1), 2, upscaled.shape[-2:])
        return mask_logits


def decode_mask(decoder: Any, hidden: Tensor, upscaled: Tensor, choose: bool) -> Tensor:
    """Return the logits of the chosen mask, or of the first if ``choose`` is false.

    Args:
        decoder: SAM's mask decoder.
        hidden: (P, 6 + M, D) float32, its tokens.
        upscaled: (P, D / 8, pixels) float32.
        choose: see ``choose_mask``.

    Returns:
        (P, pixels) float32.
    """
    networks = decoder.output_hypernetworks_mlps if choose else decoder.output_hypernetworks_mlps[:1]
    weights = torch.stack([network(hidden[:, 2 + index]) for index, network in enumerate(networks)], dim=1)
    logits: Tensor = weights @ upscaled
    return choose_mask(logits, decoder.iou_prediction_head(hidden[:, 1])) if choose else logits[:, 0]


def choose_mask(logits: Tensor, iou: Tensor) -> Tensor:
    """Return the first mask if it is stable, else that of the other three with the best predicted IoU.

    Args:
        logits: (P, 4, pixels) float32.
        iou: (P, 4) float32, predicted IoU before or after the sigmoid.

    Returns:
        (P, pixels) float32.
    """
    # Half precision cannot count 65,536 pixels.
    certain = (logits[:, 0] > STABILITY_DELTA).float().sum(dim=1, keepdim=True)
    possible = (logits[:, 0] > -STABILITY_DELTA).float().sum(dim=1, keepdim=True)
    stable = (certain / possible.clamp_min(1.0) >= STABILITY_THRESHOLD) | (possible == 0)
    best = iou[:, 1:].argmax(dim=1, keepdim=True)
    other = torch.where(best == 0, logits[:, 1], torch.where(best == 1, logits[:, 2], logits[:, 3]))
    return torch.where(stable, logits[:, 0], other)


def _hiera(config: SamConfig, second: RSRefSeg2Config) -> nn.Module:
    stages = range(4)
    widths = [config.embed_dim << stage for stage in stages]
    hiera = Sam2HieraDetConfig(
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        image_size=[config.image_size] * 2,
        window_positional_embedding_background_size=[second.background] * 2,
        blocks_per_stage=list(second.blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[config.num_heads << stage for stage in stages],
        window_size_per_stage=list(second.windows),
        global_attention_blocks=list(config.global_attn_indexes),
        mlp_ratio=float(SAM_MLP_RATIO),
        attn_implementation="sdpa",
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=widths[::-1], fpn_hidden_size=config.prompt_channels
    )
    backbone: nn.Module = Sam2VisionModel(vision).backbone
    return backbone
