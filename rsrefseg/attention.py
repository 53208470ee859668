"""SAM's attention with relative positions, in three forms that are equal and unlike in speed and memory.

The bias of query i and key j is Rh[i, j] q_i + Rw[i, j] q_i, with the unscaled query, the embedding Rh of the rows
between them and Rw of the columns. What differs is where it is added.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT, get_rel_pos
from torch import Tensor, nn

from engines.errors import BadInputError
from rsrefseg.config import SamConfig

_SCORES_BYTES = 64 << 20


class AttentionForm(StrEnum):
    """How the bias gets into the scores.

    ``published`` adds the rows' and the columns' part one after the other, as segment-anything does; ``additive`` adds
    them up first; ``folded`` makes them more channels of the product, softmax([s q, Rh q, Rw q] . [k, row, column]) v
    with the one-hot rows and columns of the keys, which is attention without any bias.
    """

    PUBLISHED = "published"
    ADDITIVE = "additive"
    FOLDED = "folded"


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The form of the windowed and of the global blocks, and in how many parts the queries of global ones are taken.

    Parts are rows of the grid: the scores of one part are all that is in memory at a time. One part is what a runtime
    with fused attention wants.
    """

    windowed: AttentionForm = AttentionForm.PUBLISHED
    whole: AttentionForm = AttentionForm.PUBLISHED
    query_parts: int = 1

    def __str__(self) -> str:
        parts = f" in {self.query_parts} parts" if self.query_parts > 1 else ""
        return f"windowed {self.windowed}, global {self.whole}{parts}"


def default_attention(config: SamConfig) -> AttentionChoice:
    """The form that exports get: so many query parts that the float32 scores of one stay within 64 MiB.

    On two CPU cores, ONNX Runtime needs two thirds of the time for a global block of SAM ViT-B in 16 parts, and a
    sixteenth of the memory (805 MB of scores for 4,096 tokens in one part).
    """
    tokens = config.grid_size**2
    scores_bytes = 4 * config.num_heads * tokens * tokens
    fits = (
        parts
        for parts in range(1, config.grid_size + 1)
        if config.grid_size % parts == 0 and scores_bytes // parts <= _SCORES_BYTES
    )
    return AttentionChoice(whole=AttentionForm.ADDITIVE, query_parts=next(fits, config.grid_size))


class RelativePositionAttention(nn.Module):
    """Attention over a grid of tokens; same parameters and result as segment-anything's ``Attention``.

    Args:
        original: whose projections and position embeddings are used.
        form: where the bias is added.
        grid_size: of the tokens it will see, H and W.
        query_parts: in how many parts the queries are taken; must divide H.

    Raises:
        BadInputError: H cannot be divided so.
    """

    row_embedding: Tensor
    column_embedding: Tensor
    key_places: Tensor

    def __init__(self, original: Attention, form: AttentionForm, grid_size: int, query_parts: int = 1) -> None:
        super().__init__()
        if grid_size % query_parts:
            raise BadInputError(f"{grid_size} rows of queries cannot be taken in {query_parts} equal parts")
        self.form, self.query_parts = form, query_parts
        self.num_heads, self.scale = original.num_heads, original.scale
        self.qkv, self.proj = original.qkv, original.proj
        for name, table in (("row_embedding", original.rel_pos_h), ("column_embedding", original.rel_pos_w)):
            # (query place, channel, key place), so that a product with the queries gives the bias.
            embedding = get_rel_pos(grid_size, grid_size, table.detach()).transpose(1, 2).contiguous()
            self.register_buffer(name, embedding)
        place = torch.eye(grid_size, dtype=original.rel_pos_h.dtype)
        rows, columns = place.repeat_interleave(grid_size, 0), place.repeat(grid_size, 1)
        self.register_buffer("key_places", torch.cat([rows, columns], dim=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        count, height, width, channels = x.shape
        split = self.qkv(x).reshape(count, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        grid = query.reshape(count, self.num_heads, height, width, -1)
        row_bias = grid @ self.row_embedding
        column_bias = (grid.transpose(2, 3) @ self.column_embedding).transpose(2, 3)
        if self.form is AttentionForm.FOLDED:
            key = torch.cat([key, self.key_places.expand(count, self.num_heads, -1, -1)], dim=-1)
        step = height // self.query_parts
        attended = []
        for start in range(0, height, step):
            rows = slice(start, start + step)
            scores = self._scores(grid[:, :, rows], row_bias[:, :, rows], column_bias[:, :, rows], key)
            attended.append(scores.softmax(dim=-1) @ value)
        merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        merged = merged.reshape(count, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        projected: Tensor = self.proj(merged.reshape(count, height, width, channels))
        return projected

    def _scores(self, query: Tensor, row_bias: Tensor, column_bias: Tensor, key: Tensor) -> Tensor:
        """(N, heads, queries, keys), biased, of the queries of some rows of the grid.

        Args:
            query: (N, heads, rows, W, C).
            row_bias: (N, heads, rows, W, H).
            column_bias: (N, heads, rows, W, W).
            key: (N, heads, H W, C), in the folded form with their places behind.
        """
        count, heads, rows, width, _ = query.shape
        flat = (count, heads, rows * width, -1)
        scaled = query * self.scale
        if self.form is AttentionForm.FOLDED:
            folded = torch.cat([scaled, row_bias, column_bias], dim=-1).reshape(flat)
            return torch.matmul(folded, key.transpose(-1, -2))
        scores: Tensor = scaled.reshape(flat) @ key.transpose(-1, -2)
        if self.form is AttentionForm.ADDITIVE:
            bias = row_bias.unsqueeze(-1) + column_bias.unsqueeze(-2)
            return scores + bias.reshape(scores.shape)
        split = scores.reshape(count, heads, rows, width, row_bias.shape[-1], column_bias.shape[-1])
        biased = split + row_bias.unsqueeze(-1) + column_bias.unsqueeze(-2)
        return biased.reshape(scores.shape)


def choose_attention(encoder: ImageEncoderViT, choice: AttentionChoice) -> None:
    """Give every block of SAM's image encoder the chosen form of attention, in place.

    Raises:
        BadInputError: the grid's rows cannot be divided into so many parts.
    """
    for block in encoder.blocks:
        if block.window_size:
            block.attn = RelativePositionAttention(block.attn, choice.windowed, block.window_size)
        else:
            side = encoder.img_size // encoder.patch_embed.proj.stride[0]
            block.attn = RelativePositionAttention(block.attn, choice.whole, side, choice.query_parts)
