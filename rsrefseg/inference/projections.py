"""Attention projections that fold the scale and the biases of keys and values into other weights.

Folding is exact in real arithmetic: the queries include the scale; a key bias adds the same q . b to every score of a
query, which softmax cancels; softmax weights sum to 1, so a value bias becomes an output bias. The projections of
padding tokens, which consist of biases only, are then zero.
"""

from typing import Any

import torch
from torch import Tensor, nn


def folded_projections(
    query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, scale: float
) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Fold the scale and the query bias into queries, the value bias into the output; computed in float64."""
    output_bias = _bias(output) + output.weight.detach().double() @ _bias(value)
    return (
        linear(query.weight.detach().double() * scale, _bias(query) * scale, query.weight.dtype),
        linear(key.weight, None, key.weight.dtype),
        linear(value.weight, None, value.weight.dtype),
        linear(output.weight, output_bias, output.weight.dtype),
    )


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """Return a linear layer with weight (out, in) and bias (out,), cast to ``dtype``, without gradients."""
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
        fused: write attention as one ONNX operator instead of two products around a softmax.
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
        """Attend with query (P, N, C), key and value (P, M, C); the mask (P, 1, N, M) is added to the scores."""
        projected = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.fused:
            attended = fused_attention(*projected, self.num_heads, mask)
        else:
            queries, keys, values = map(self._heads, projected)
            attended = attention(queries.transpose(1, 2), keys.permute(0, 2, 3, 1), values.transpose(1, 2), mask)
            attended = attended.transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(attended)
        return result

    def _heads(self, x: Tensor) -> Tensor:
        """Split (P, N, C) into heads: (P, N, heads, C / heads)."""
        return torch.unflatten(x, 2, (self.num_heads, -1))


class FoldedSelfAttention(FoldedAttention):
    """Replaces the attention of SigLIP's encoder layers."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """Attend over tokens (N, T, C); the mask is added to the scores."""
        return self.attend(hidden_states, hidden_states, hidden_states, attention_mask), None


class FoldedCrossAttention(FoldedAttention):
    """Replaces the attention of SAM's mask decoder and of the cascaded prompter."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with query (P, N, C), key and value (P, M, D); the mask (P, 1, 1, M) is added to the scores."""
        return self.attend(q, k, v, mask)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention for scaled queries.

    Args:
        query: (P, heads, N, C), scaled.
        key: (P, heads, C, M).
        value: (P, heads, M, D).
        mask: (P, 1 or heads, N, M), added to the scores.

    Returns:
        (P, heads, N, D).
    """
    scores = query @ key
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ value


def fused_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Compute attention for scaled queries as one operator: in an ONNX graph, ``Attention`` of opset 23 on tokens.

    Args:
        query: (1 or P, N, heads C), scaled.
        key: (P, M, heads C).
        value: (P, M, heads D).
        heads: number of heads.
        mask: (P, 1 or heads, 1 or N, M), added to the scores.

    Returns:
        (P, N, heads D).
    """
    # The operator broadcasts neither queries nor the rows of a mask.
    if query.shape[0] != key.shape[0]:
        query = query.expand(key.shape[0], -1, -1)
    if mask is not None and mask.shape[2] != query.shape[1]:
        mask = mask.expand(-1, -1, query.shape[1], -1)
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.attention(query, key, value, mask, q_num_heads=heads, kv_num_heads=heads, scale=1.0)[0]
    query, key, value = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    attended = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    return attended.transpose(1, 2).flatten(2)
