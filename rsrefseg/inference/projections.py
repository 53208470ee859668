"""Attention projections with the scale and the biases of keys and values folded away.

Exact in real arithmetic: the scale goes into the queries; a key bias adds the same q . b to every score of a query,
which softmax cancels; and since softmax weights sum to 1, a value bias is one more output bias. Projections of padded
tokens, which are biases only, are then zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn


def folded_projections(
    query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, scale: float
) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Queries with scale and bias, keys and values without bias, output with the value bias; computed in float64."""
    output_bias = _bias(output) + output.weight.detach().double() @ _bias(value)
    return (
        linear(query.weight.detach().double() * scale, _bias(query) * scale, query.weight.dtype),
        linear(key.weight, None, key.weight.dtype),
        linear(value.weight, None, value.weight.dtype),
        linear(output.weight, output_bias, output.weight.dtype),
    )


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A linear layer with the given weights, for inference."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=dtype)
    made.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return made


def _bias(layer: nn.Linear) -> Tensor:
    zeros = torch.zeros(layer.out_features, dtype=torch.float64)
    return layer.bias.detach().double() if layer.bias is not None else zeros


class FoldedAttention(nn.Module):
    """Attention of SigLIP's towers or SAM's mask decoder, with folded projections.

    Args:
        original: has ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj`` and ``num_heads``, and scales by the root of its
            channels per head.
        fused: write attention as one operator instead of two products around a softmax.
    """

    def __init__(self, original: Any, fused: bool = False) -> None:
        super().__init__()
        self.num_heads: int = original.num_heads
        self.fused = fused
        scale = (original.q_proj.out_features // original.num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = folded_projections(
            original.q_proj, original.k_proj, original.v_proj, original.out_proj, scale
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """(P, N, C), (P, M, C), (P, M, C), and (P, 1, N, M) added to the scores -> (P, N, C)."""
        queries = self._heads(self.q_proj(query)).transpose(1, 2)
        keys = self._heads(self.k_proj(key))
        keys = keys.transpose(1, 2) if self.fused else keys.permute(0, 2, 3, 1)
        values = self._heads(self.v_proj(value)).transpose(1, 2)
        attended = attention(queries, keys, values, mask, self.fused)
        result: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: Tensor) -> Tensor:
        """(P, N, C) -> (P, N, heads, C / heads)."""
        return torch.unflatten(x, 2, (self.num_heads, -1))


class FoldedSelfAttention(FoldedAttention):
    """Replaces the attention of SigLIP's encoder layers."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """(N, T, C) -> (N, T, C); the mask is added to the scores."""
        return self.attend(hidden_states, hidden_states, hidden_states, attention_mask), None


class FoldedCrossAttention(FoldedAttention):
    """Replaces the attention of SAM's mask decoder."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(P, N, C), (P, M, C), (P, M, C) -> (P, N, C)."""
        return self.attend(q, k, v)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, fused: bool = False) -> Tensor:
    """Softmax of scaled queries by keys, times the values.

    Args:
        query: (P, heads, N, C), scaled.
        key: (P, heads, C, M); where fused (P, heads, M, C).
        value: (P, heads, M, D).
        mask: added to the scores, (P, 1 or heads, N, M).
        fused: write one operator.

    Returns:
        (P, heads, N, D).
    """
    if fused:
        return nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    scores = query @ key
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ value
