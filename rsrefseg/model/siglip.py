"""The stages ``siglip_vision`` and ``siglip_text``, built from the SigLIP towers of ``transformers``."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

from rsrefseg.engines.text import Padding

from .config import SiglipConfig, TransformerConfig
from .preprocessing import Preprocessing


class SiglipVision(nn.Module):
    """Normalise and resize an image and encode it with the vision tower without its pooling head.

    If ``takes_pixels``, the weights of the patch embedding include the normalisation and take pixels of 0 to 255.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SiglipConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.takes_pixels = False
        tower = SiglipVisionModel(
            SiglipVisionConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_use_head=False,
                **_tower_arguments(config.vision),
            )
        )
        tower = getattr(tower, "vision_model", tower)
        self.embeddings: nn.Module = tower.embeddings
        self.encoder: nn.Module = tower.encoder
        self.post_layernorm: nn.LayerNorm = tower.post_layernorm
        for name, values in (("mean", preprocessing.siglip_mean), ("std", preprocessing.siglip_std)):
            self.register_buffer(f"pixel_{name}", torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images as published: bilinear resize without antialiasing, features after the last norm.

        Args:
            image: (N, 3, S, S) uint8, RGB, the same tensor that ``SamEncoder`` takes.

        Returns:
            clip_features (N, T, C) float32, T tokens in row-major order of the patch grid.
        """
        pixels = image.float() if self.takes_pixels else (image.float() / 255.0 - self.pixel_mean) / self.pixel_std
        pixels = F.interpolate(
            pixels, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False, antialias=False
        )
        hidden = self.encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state
        features: Tensor = self.post_layernorm(hidden)
        return features


class SiglipText(nn.Module):
    """Encode tokens to word features and one sentence feature, under either padding policy.

    Phrases have one length L. Under ``fixed`` a shorter one is not exact: SigLIP was trained without a mask, so that
    every position attends to the padding, and the last position, a padding token, is pooled.
    """

    def __init__(self, config: SiglipConfig, padding: Padding) -> None:
        super().__init__()
        self.padding = padding
        tower = SiglipTextModel(
            SiglipTextConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.text_length,
                projection_size=config.vision.hidden_size,
                pad_token_id=config.pad_token_id,
                bos_token_id=None,
                eos_token_id=config.pad_token_id,
                **_tower_arguments(config.text),
            )
        )
        tower = getattr(tower, "text_model", tower)
        self.embeddings: nn.Module = tower.embeddings
        self.encoder: nn.Module = tower.encoder
        self.final_layer_norm: nn.LayerNorm = tower.final_layer_norm
        self.head: nn.Linear = tower.head

    def forward(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode phrases; a phrase's features never depend on its neighbours in the batch.

        Args:
            input_ids: (P, L) int64, padded to the fixed length L.
            token_mask: (P, L) bool, the positions of ``TokenBatch``.

        Returns:
            word_features (P, L, C) float32, zero where ``token_mask`` is false, and sentence_feature (P, C) float32:
            the head of the last position (``fixed``) or of the last position inside the mask (``longest``).
        """
        hidden = self.embeddings(input_ids=input_ids)
        keep = token_mask.to(hidden.dtype).unsqueeze(-1)
        if self.padding == "fixed":
            hidden = self.final_layer_norm(self.encoder(inputs_embeds=hidden).last_hidden_state)
            pooled = hidden[:, -1]
        else:
            # Softmax turns this summand into an exact 0, in half precision as well. A boolean mask exports to operators
            # that some TensorRT releases lack.
            attend = ((keep - 1) * 1e4).transpose(1, 2).unsqueeze(1).expand(-1, 1, token_mask.shape[1], -1)
            hidden = self.final_layer_norm(self.encoder(inputs_embeds=hidden, attention_mask=attend).last_hidden_state)
            # One-hot of the last kept position: it is kept and its successor is not (padding is on the right).
            last = keep - F.pad(keep[:, 1:], (0, 0, 0, 1))
            pooled = (hidden * last).sum(dim=1)
        return hidden * keep, self.head(pooled)


def _tower_arguments(tower: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_hidden_layers": tower.num_hidden_layers,
        "num_attention_heads": tower.num_attention_heads,
        "attn_implementation": "sdpa",
    }
