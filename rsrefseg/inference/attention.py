"""SAM's attention with relative positions, in four mathematically equal forms that differ in speed and memory.

The bias of query i and key j is Rh[i, j] q_i + Rw[i, j] q_i, where q_i is the unscaled query, Rh the embedding of the
distance between their rows and Rw that of their columns. The forms differ in where this bias is added.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

from .projections import attention, folded_projections, linear


class AttentionForm(StrEnum):
    """Where attention adds its position bias.

    ``published`` adds the row bias and then the column bias to the scores, as segment-anything does. ``additive`` adds
    their sum. ``folded`` appends them to the channels of the product: softmax([s q, Rh q, Rw q] . [k, row, column]) v
    with the one-hot rows and columns of the keys is attention without a bias. ``padded`` is ``folded`` with v padded
    with zeros to as many channels, which the result drops: some runtimes fuse attention only with equal head sizes.
    """

    PUBLISHED = "published"
    ADDITIVE = "additive"
    FOLDED = "folded"
    PADDED = "padded"


_FOLDED = (AttentionForm.FOLDED, AttentionForm.PADDED)
# TensorRT reads 8 half-precision channels at a time, and copies tensors of other sizes to padded ones first.
_HEAD_SIZE_STEP = 8


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """Form of attention in SAM's windowed and global blocks, and the parts their tokens are split into.

    A part is a number of grid rows. The intermediate values of one part are in memory at a time.

    Attributes:
        windowed: form of the windowed blocks.
        whole: form of the global blocks.
        query_parts: parts of a global block's queries.
        mlp_parts: parts of the tokens in an MLP.
    """

    windowed: AttentionForm = AttentionForm.PUBLISHED
    whole: AttentionForm = AttentionForm.PUBLISHED
    query_parts: int = 1
    mlp_parts: int = 1


class RelativePositionAttention(nn.Module):
    """segment-anything's ``Attention`` on tokens, including the window partition.

    Tokens that pad the last windows are not projected but zero: as keys their score is the bias of their position, as
    values they add nothing.

    Args:
        original: source of the projections and position embeddings.
        form: form of the position bias.
        grid_size: rows and columns of the token grid.
        window_size: side of the windows; 0 for attention over the whole grid.
        query_parts: parts of a window's (or the grid's) queries; must divide its rows.
    """

    column_embedding: Tensor
    key_places: Tensor

    def __init__(
        self,
        original: Attention,
        form: AttentionForm,
        grid_size: int,
        window_size: int = 0,
        query_parts: int = 1,
    ) -> None:
        super().__init__()
        self.side = window_size or grid_size
        self.windows = -(-grid_size // self.side)
        self.form, self.grid_size, self.query_parts = form, grid_size, query_parts
        self.num_heads = original.num_heads
        biases = original.qkv.bias.chunk(3) if original.qkv.bias is not None else (None,) * 3
        query, key, value = (
            linear(weight, bias, weight.dtype)
            for weight, bias in zip(original.qkv.weight.chunk(3), biases, strict=True)
        )
        self.q_proj, self.k_proj, self.v_proj, self.proj = folded_projections(
            query, key, value, original.proj, original.scale
        )
        # (query place, channel, key place): the product with the scaled queries gives the bias.
        rows, columns = (
            (get_rel_pos(self.side, self.side, table.detach()).double() / original.scale)
            .to(table.dtype)
            .transpose(1, 2)
            for table in (original.rel_pos_h, original.rel_pos_w)
        )
        self.row_embeddings = nn.ParameterList(
            nn.Parameter(part.contiguous(), requires_grad=False) for part in rows.chunk(query_parts)
        )
        self.channels = self.q_proj.out_features // self.num_heads
        place = torch.eye(self.side, dtype=original.rel_pos_h.dtype)
        channels = torch.zeros(self.side**2, self.channels, dtype=place.dtype)
        places = torch.cat([channels, place.repeat_interleave(self.side, 0), place.repeat(self.side, 1)], dim=1)
        if form is AttentionForm.PADDED:
            # Zero channels of queries and keys add nothing to their product.
            unused = -places.shape[1] % _HEAD_SIZE_STEP
            columns, places = (nn.functional.pad(table, (0, unused)) for table in (columns, places))
        self.register_buffer("column_embedding", columns.contiguous())
        self.register_buffer("key_places", places, persistent=False)
        self.padding = places.shape[1] - self.channels

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens, (N, H W, C) float32, and return the same shape."""
        side = self.side
        query = self._heads(self.q_proj(x)).flatten(0, 1)
        key, value = (self._heads(project(x)).flatten(3, 4).flatten(0, 1) for project in (self.k_proj, self.v_proj))
        if self.form in _FOLDED:
            # Pad and add: concatenating a constant would need an Expand to the number of images.
            key = nn.functional.pad(key, (0, self.padding)) + self.key_places
        if self.form is AttentionForm.PADDED:
            value = nn.functional.pad(value, (0, self.padding))
        # ONNX Runtime and OpenVINO fuse this transpose into the product, but not a transpose that splits heads.
        key = key.transpose(2, 3)
        # chunk(1) would export as a Split into one part.
        queries = query.chunk(self.query_parts, dim=2) if self.query_parts > 1 else (query,)
        embeddings = zip(queries, self.row_embeddings, strict=True)
        attended = [self._attend(part, embedding, key, value) for part, embedding in embeddings]
        merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        # (N windows, heads, side side, C) -> (N window rows, side, windows, side, heads C)
        merged = torch.unflatten(torch.unflatten(merged, 2, (side, side)), 0, (-1, self.windows))
        return self._project(merged.permute(0, 3, 1, 4, 2, 5).flatten(4))

    def _project(self, attended: Tensor) -> Tensor:
        """Merge windows, (N window rows, side, windows, side, heads C), to tokens and project them: (N, H W, C)."""
        grid = torch.unflatten(attended.flatten(2, 3), 0, (-1, self.windows)).flatten(1, 2)
        projected: Tensor = self.proj(grid[:, : self.grid_size, : self.grid_size].flatten(1, 2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (N, H W, heads C) to (N window rows, windows, heads, side, side, C), padded with zeros."""
        return self._windows(x).permute(0, 2, 4, 1, 3, 5)

    def _windows(self, x: Tensor) -> Tensor:
        """Reshape (N, H W, heads C) to (N window rows, side, windows, side, heads, C), padded with zeros."""
        channels = x.shape[-1]
        if missing := self.windows * self.side - self.grid_size:
            # Padding columns as values at the end of a row pads only the last two of four axes: ONNX Runtime's CUDA
            # kernel is fast for these axes alone.
            rows = x.reshape(-1, 1, self.grid_size, self.grid_size * channels)
            x = nn.functional.pad(rows, (0, missing * channels, 0, missing))
        return x.reshape(-1, self.side, self.windows, self.side, self.num_heads, channels // self.num_heads)

    def _attend(self, query: Tensor, row_embedding: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with the queries in some rows of a window.

        Args:
            query: (N windows, heads, rows, side, C).
            row_embedding: (rows, C, side), position embedding from these rows to all rows.
            key: (N windows, heads, C, side side), with the one-hot positions after the channels in the folded form.
            value: (N windows, heads, side side, C).

        Returns:
            (N windows, heads, rows side, C).
        """
        row_bias = query @ row_embedding
        column_bias = (query.transpose(2, 3) @ self.column_embedding).transpose(2, 3)
        if self.form in _FOLDED:
            query = torch.cat([query, row_bias, column_bias], dim=-1)
            attended = attention(query.flatten(2, 3), key, value)
            return attended[..., : self.channels] if self.form is AttentionForm.PADDED else attended
        rows, columns, queries = row_bias.unsqueeze(-1), column_bias.unsqueeze(-2), query.flatten(2, 3)
        if self.form is AttentionForm.ADDITIVE:
            return attention(queries, key, value, (rows + columns).flatten(4).flatten(2, 3))
        scores = torch.unflatten(torch.unflatten(queries @ key, 3, (self.side, self.side)), 2, (-1, self.side))
        result: Tensor = (scores + rows + columns).flatten(4).flatten(2, 3).softmax(dim=-1) @ value
        return result
