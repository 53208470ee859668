"""CascadedPrompter: refines visual features by two text queries and turns them into prompts for SAM 2.

Module names are those of the published checkpoints. Attention and MLPs are residual, and a norm follows each of them;
position encodings are added to queries and keys only.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, RSRefSeg2Config
from .dense_prompt import UpsampledCosine

_TEXT_QUERIES = 3


class PrompterAttention(nn.Module):
    """Attention between tokens of any width, inside a width of its own, without dropout."""

    def __init__(self, width: int, num_heads: int, query_channels: int, key_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(query_channels, width)
        self.k_proj, self.v_proj = nn.Linear(key_channels, width), nn.Linear(key_channels, width)
        self.out_proj = nn.Linear(width, query_channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with query (P, N, Cq), key and value (P, M, Ck); the mask (P, 1, 1, M) is added to the scores."""
        query, key, value = (
            torch.unflatten(project(x), 2, (self.num_heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        attended = (scores if mask is None else scores + mask).softmax(dim=-1) @ value
        result: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(channels, width), nn.Linear(width, channels)))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to tokens (..., C)."""
        result: Tensor = self.layers[1](self.act(self.layers[0](x)))
        return result


class _Layer(nn.Module):
    """A layer whose parts are named as published. ``add_*`` applies a residual part and the norm after it."""

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__()
        self.config = config

    def make_attention(self, name: str, query_channels: int, key_channels: int) -> None:
        width, heads = self.config.prompter_width, self.config.prompter_heads
        self.add_module(name, PrompterAttention(width, heads, query_channels, key_channels))

    def make_mlp(self, name: str, channels: int) -> None:
        self.add_module(name, Mlp(channels, self.config.prompter_width))

    def make_norms(self, name: str, count: int, channels: int) -> None:
        for number in range(1, count + 1):
            self.add_module(f"{name}_{number}", nn.LayerNorm(channels))

    def add_attention(
        self, name: str, norm: str, x: Tensor, place: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        result: Tensor = self.get_submodule(norm)(x + self.get_submodule(name)(x + place, key, value, mask))
        return result

    def add_mlp(self, name: str, norm: str, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(norm)(x + self.get_submodule(name)(x))
        return result


class TextQueryLayer(_Layer):
    """Two sets of text queries attend to themselves, to the words and to each other."""

    def __init__(self, config: RSRefSeg2Config, channels: int) -> None:
        super().__init__(config)
        for own, other in ((1, 2), (2, 1)):
            self.make_attention(f"self_attn_query_query{own}", channels, channels)
            self.make_attention(f"cross_attn_query_text_query{own}_text", channels, channels)
            self.make_attention(f"cross_attn_query_query_query{own}_query{other}", channels, channels)
            self.make_mlp(f"mlp_query{own}_2", channels)
            self.make_mlp(f"mlp_query{own}_3", channels)
            self.make_norms(f"norm_query{own}", 5, channels)

    def forward(
        self, queries: list[Tensor], places: tuple[Tensor, Tensor], words: Tensor, mask: Tensor
    ) -> list[Tensor]:
        """Refine queries, two of (P, 3, C), with their position encodings (3, C), words (P, L, C) and their mask."""
        q, e = list(queries), places
        for i in (0, 1):
            q[i] = self.add_attention(
                f"self_attn_query_query{i + 1}", f"norm_query{i + 1}_1", q[i], e[i], q[i] + e[i], q[i]
            )
        for i in (0, 1):
            own = i + 1
            name = f"cross_attn_query_text_query{own}_text"
            q[i] = self.add_attention(name, f"norm_query{own}_2", q[i], e[i], words, words, mask)
            q[i] = self.add_mlp(f"mlp_query{own}_2", f"norm_query{own}_3", q[i])
        for i in (0, 1):
            own, other = i + 1, 2 - i
            name, j = f"cross_attn_query_query_query{own}_query{other}", 1 - i
            q[i] = self.add_attention(name, f"norm_query{own}_4", q[i], e[i], q[j] + e[j], q[j])
            q[i] = self.add_mlp(f"mlp_query{own}_3", f"norm_query{own}_5", q[i])
        return q


class ImageQueryLayer(_Layer):
    """Image tokens attend to a set of text queries."""

    text_attention = "self_attn_text_text_1"

    def __init__(self, config: RSRefSeg2Config, channels: int) -> None:
        super().__init__(config)
        self.make_attention(self.text_attention, channels, channels)
        self.make_norms("norm_text", 1, channels)
        self.make_attention("cross_attn_img_text_1", channels, channels)
        self.make_mlp("mlp_img_1", channels)
        self.make_norms("norm_img", 2, channels)

    def refine(self, x: Tensor, image_place: Tensor, text: Tensor, text_place: Tensor) -> tuple[Tensor, Tensor]:
        """Refine image tokens (1 or P, T, C) by text queries (P, 3, C); return both, (P, T, C) and (P, 3, C)."""
        text = self.add_attention(self.text_attention, "norm_text_1", text, text_place, text + text_place, text)
        x = self.add_attention("cross_attn_img_text_1", "norm_img_1", x, image_place, text + text_place, text)
        return self.add_mlp("mlp_img_1", "norm_img_2", x), text


class PromptLayer(ImageQueryLayer):
    """``ImageQueryLayer``, after which prompts attend to themselves, to the text queries and to the image tokens."""

    text_attention = "self_attn_text_1"

    def __init__(self, config: RSRefSeg2Config, channels: int, prompt_channels: int) -> None:
        super().__init__(config, channels)
        self.make_attention("self_attn_prompt_1", prompt_channels, prompt_channels)
        self.make_attention("cross_attn_prompt_text_1", prompt_channels, channels)
        self.make_attention("cross_attn_prompt_img_1", prompt_channels, channels)
        self.make_mlp("mlp_prompt_2", prompt_channels)
        self.make_mlp("mlp_prompt_3", prompt_channels)
        self.make_norms("norm_prompt", 5, prompt_channels)

    def prompt(
        self, p: Tensor, prompt_place: Tensor, x: Tensor, image_place: Tensor, text: Tensor, text_place: Tensor
    ) -> Tensor:
        """Refine prompts (1 or P, M, D) by text queries and image tokens, and return them as (P, M, D)."""
        p = self.add_attention("self_attn_prompt_1", "norm_prompt_1", p, prompt_place, p + prompt_place, p)
        p = self.add_attention("cross_attn_prompt_text_1", "norm_prompt_2", p, prompt_place, text + text_place, text)
        p = self.add_mlp("mlp_prompt_2", "norm_prompt_3", p)
        p = self.add_attention("cross_attn_prompt_img_1", "norm_prompt_4", p, prompt_place, x + image_place, x)
        return self.add_mlp("mlp_prompt_3", "norm_prompt_5", p)


class CascadedPrompter(nn.Module):
    """Two rounds of refinement of the image features by text, then sparse prompts and the dense prompt.

    ``logit_scale`` (a logarithm) and ``logit_bias`` are SigLIP's parameters, trained with the prompter.
    """

    def __init__(self, config: ModelConfig, second: RSRefSeg2Config) -> None:
        super().__init__()
        channels, prompt_channels, grid = (
            config.siglip.vision.hidden_size,
            config.sam.prompt_channels,
            config.siglip.grid_size,
        )
        self.grid_size, self.mask_size = grid, config.sam.mask_size
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.tensor([value])) for value in (2.302585, -10.0))
        self.text_query_pe_embedding1 = nn.Parameter(torch.randn(_TEXT_QUERIES, channels) * 0.02)
        self.text_query_pe_embedding2 = nn.Parameter(torch.randn(_TEXT_QUERIES, channels) * 0.02)
        self.img_pe = nn.Parameter(torch.randn(1, channels, grid, grid) * 0.02)
        self.prompt_pe_embedding = nn.Parameter(torch.randn(second.prompts, prompt_channels) * 0.02)
        self.prompt_embedding = nn.Parameter(torch.randn(second.prompts, prompt_channels) * 0.02)
        self.two_queries_text_attn_layers = nn.ModuleList(TextQueryLayer(second, channels) for _ in range(2))
        self.queries1_to_img_attn_layers = nn.ModuleList(ImageQueryLayer(second, channels) for _ in range(2))
        self.prompt_queries2_img_attn_layers = nn.ModuleList(
            PromptLayer(second, channels, prompt_channels) for _ in range(2)
        )
        self.sparse_prompt_mlp = Mlp(prompt_channels, second.prompter_width)
        self.dense_prompt_conv = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1),
            nn.BatchNorm2d(channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, padding=1),
        )
        self.upsampled_cosine = UpsampledCosine(self.grid_size, self.mask_size)

    def forward(
        self, clip_features: Tensor, word_features: Tensor, sentence_feature: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the prompts of P phrases for one image, or for P images with one phrase each.

        Args:
            clip_features: (1 or P, T, C) float32.
            word_features: (P, L, C) float32, zero where ``token_mask`` is false.
            sentence_feature: (P, C) float32.
            token_mask: (P, L) bool, the positions of the phrase: the first ones, at least one.

        Returns:
            sparse_prompts (P, M, D) float32 and mask_prompt (P, 1, H, W) float32 logits.
        """
        keep = token_mask.to(word_features.dtype)
        attend = ((keep - 1) * 1e4).unsqueeze(1).unsqueeze(1)
        places = (self.text_query_pe_embedding1, self.text_query_pe_embedding2)
        queries = [text_bins(keep) @ word_features] * 2
        layer: Any
        for layer in self.two_queries_text_attn_layers:
            queries = layer(queries, places, word_features, attend)

        image_place = self.img_pe.flatten(2).transpose(1, 2)
        x, (first, second) = clip_features, queries
        for layer in self.queries1_to_img_attn_layers:
            x, first = layer.refine(x, image_place, first, places[0])
        prompts = self.prompt_embedding.unsqueeze(0)
        for layer in self.prompt_queries2_img_attn_layers:
            x, second = layer.refine(x, image_place, second, places[1])
            prompts = layer.prompt(prompts, self.prompt_pe_embedding, x, image_place, second, places[1])
        return self.sparse_prompt_mlp(prompts), self._mask_prompt(x, sentence_feature)

    def _mask_prompt(self, x: Tensor, sentence_feature: Tensor) -> Tensor:
        """Compare image tokens (P, T, C) with the sentence (P, C): scaled cosine on the mask grid, (P, 1, H, W)."""
        grid = self.dense_prompt_conv(torch.unflatten(x.transpose(1, 2), 2, (self.grid_size, self.grid_size)))
        similarity: Tensor = self.upsampled_cosine(grid, sentence_feature)
        return self.logit_scale.exp() * similarity + self.logit_bias


def text_bins(keep: Tensor) -> Tensor:
    """Return the weights (P, 3, L) that average the words of a phrase in three bins, as adaptive average pooling does.

    With n words, bin i has the positions from floor(i n / 3) up to ceil((i + 1) n / 3) - 1. The weights are computed
    from the mask, so that no exported graph contains those of one length.

    Args:
        keep: (P, L) float, 1 for the n first positions, else 0.
    """
    length = keep.shape[1]
    count = keep.sum(dim=1).view(-1, 1, 1)
    position = 3.0 * torch.arange(length, dtype=keep.dtype, device=keep.device)
    number = torch.arange(_TEXT_QUERIES, dtype=keep.dtype, device=keep.device).view(-1, 1)
    inside = (position > number * count - 3.0) & (position < (number + 1.0) * count)
    weights = inside.to(keep.dtype)
    return weights / weights.sum(dim=2, keepdim=True)
