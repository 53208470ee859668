"""SAM's attention with relative positions around one ONNX ``Attention`` node, which some runtimes run as one kernel."""

import torch
from torch import Tensor, nn

from .attention import AttentionForm, RelativePositionAttention
from .projections import fused_attention


class FusedRelativePositionAttention(RelativePositionAttention):
    """``RelativePositionAttention`` as one operator, in the padded form or with the sum of both biases as its mask.

    Heads are not moved before the tokens, and no product broadcasts its batch: ONNX Runtime gives cuBLAS addresses in
    host memory for such products, which a CUDA graph must not contain.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens, (N, H W, C), and return the same shape."""
        side = self.side
        # (N windows, side, side, heads, C)
        query, key, value = (
            self._windows(project(x)).transpose(1, 2).flatten(0, 1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        rows = _bias(query, self.row_embeddings[0])
        columns = _bias(query.transpose(1, 2), self.column_embedding).transpose(1, 2)
        mask = None
        if self.form is AttentionForm.PADDED:
            query = torch.cat([query, rows, columns], dim=-1)
            places = self.key_places.view(side, side, 1, -1)
            key = nn.functional.pad(key, (0, self.padding)) + places
            value = nn.functional.pad(value, (0, self.padding))
        else:
            # (N windows, heads, side side, side side)
            rows, columns = (bias.permute(0, 3, 1, 2, 4) for bias in (rows, columns))
            mask = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4).flatten(2, 3)
        query, key, value = (part.flatten(3).flatten(1, 2) for part in (query, key, value))
        attended = fused_attention(query, key, value, self.num_heads, mask)
        attended = torch.unflatten(torch.unflatten(attended, 2, (self.num_heads, -1)), 1, (side, side))
        attended = torch.unflatten(attended[..., : self.channels].flatten(3), 0, (-1, self.windows))
        return self._project(attended.transpose(1, 2))


def _bias(query: Tensor, embedding: Tensor) -> Tensor:
    """Return the position bias of queries along one axis, as a product whose only batch are the places on it.

    Args:
        query: (N, places, n, heads, C).
        embedding: (places, C, side).

    Returns:
        (N, places, n, heads, side).
    """
    product = query.transpose(0, 1).flatten(1, 3) @ embedding
    # Transposed first: onnxscript 0.7 removes reshapes on both sides of a product even if that changes its batches.
    return torch.unflatten(product.transpose(0, 1), 0, (-1, *query.shape[2:4])).permute(0, 3, 1, 2, 4)
