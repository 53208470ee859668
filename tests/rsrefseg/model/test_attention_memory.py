"""No form of attention holds more at a time than it must: the scores of one part, or its queries, keys and values."""

import itertools
import math
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsrefseg.inference.attention import AttentionForm, RelativePositionAttention

CHANNELS, HEADS, GRID, WINDOW = 48, 4, 16, 6
WINDOWS = math.ceil(GRID / WINDOW) ** 2


class Sizes(TorchDispatchMode):
    """Records how many numbers every result has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found |= {leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


@pytest.mark.parametrize(
    ("form", "window", "parts"),
    [*itertools.product(AttentionForm, (0,), (1, 4, 16)), *itertools.product(AttentionForm, (WINDOW,), (1, 2))],
)
def test_the_largest_value_is_the_scores_of_one_part_or_what_they_are_made_of(
    form: AttentionForm, window: int, parts: int
) -> None:
    side, count = window or GRID, WINDOWS if window else 1
    scores = count * HEADS * side**2 * side**2 // parts
    # Queries or keys of all heads; the folded form has 2 x side more channels.
    extra = 2 * side if form is AttentionForm.FOLDED else 0
    projected = count * HEADS * side**2 * (CHANNELS // HEADS + extra)
    original = Attention(CHANNELS, HEADS, use_rel_pos=True, input_size=(side, side)).eval()
    module = RelativePositionAttention(original, form, GRID, window, parts)
    with torch.no_grad(), Sizes() as sizes:
        module(torch.zeros(1, GRID**2, CHANNELS))
    assert len(sizes.found) > 3
    assert max(sizes.found) <= max(scores, projected)
    assert scores in sizes.found
