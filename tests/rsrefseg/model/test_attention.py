"""All forms of SAM's attention are equal in float64 and limit their intermediate values."""

import math
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsrefseg.inference.attention import AttentionChoice, AttentionForm, RelativePositionAttention
from rsrefseg.inference.image_encoder import InferenceImageEncoder, MlpInParts
from rsrefseg.model.config import model_config
from rsrefseg.model.model import build_model
from tests.support.small import small_config
from tests.support.upstream import randomize, sam_attention


@pytest.mark.parametrize("form", AttentionForm)
@pytest.mark.parametrize("parts", [1, 2, 6])
@pytest.mark.parametrize("made_for", [6, 9])  # position embeddings of another size are resampled
def test_every_form_equals_the_published_one(form: AttentionForm, parts: int, made_for: int) -> None:
    original = sam_attention(made_for).double()
    x = torch.randn(3, 6, 6, 24, dtype=torch.float64)
    with torch.no_grad():
        wanted = original(x).flatten(1, 2)
        found = RelativePositionAttention(original, form, 6, query_parts=parts)(x.flatten(1, 2))
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@pytest.mark.parametrize("form", AttentionForm)
def test_a_whole_encoder_keeps_its_result(form: AttentionForm) -> None:
    encoder = randomize(build_model(small_config())).sam_encoder.double()
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted = encoder.image_encoder(pixels)
        folded = InferenceImageEncoder(encoder.image_encoder, AttentionChoice(form, form, query_parts=2, mlp_parts=4))
        found = folded(pixels)
    assert all(isinstance(block.attn, RelativePositionAttention) for block in folded.blocks)
    assert all(isinstance(block.mlp, MlpInParts) for block in folded.blocks)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


# Preset l has more heads of the same size. The last windows are padded: 64 = 4 x 14 + 8.
FULL = model_config("b").sam
FULL_HEAD = FULL.embed_dim // FULL.num_heads


@pytest.mark.parametrize("form", [AttentionForm.ADDITIVE, AttentionForm.PADDED])
@pytest.mark.parametrize("window", [FULL.window_size, 0], ids=["windowed", "global"])
def test_forms_that_tensorrt_fuses_equal_the_published_one_at_full_size(form: AttentionForm, window: int) -> None:
    grid = FULL.grid_size
    original = sam_attention(window or grid, FULL_HEAD, heads=1).double()
    x = torch.randn(1, grid, grid, FULL_HEAD, dtype=torch.float64)
    with torch.no_grad():
        windows, padded = window_partition(x, window or grid)
        wanted = window_unpartition(original(windows), window or grid, padded, (grid, grid)).flatten(1, 2)
        found = RelativePositionAttention(original, form, grid, window)(x.flatten(1, 2))
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


CHANNELS, HEADS, GRID, WINDOW = 48, 4, 16, 6


class Sizes(TorchDispatchMode):
    """Records the number of elements of every result."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found |= {leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


@pytest.mark.parametrize("form", AttentionForm)
@pytest.mark.parametrize(("window", "parts"), [(0, 1), (0, 4), (0, 16), (WINDOW, 1), (WINDOW, 2)])
def test_the_largest_value_is_the_scores_of_one_part(form: AttentionForm, window: int, parts: int) -> None:
    side, count = window or GRID, math.ceil(GRID / window) ** 2 if window else 1
    scores = count * HEADS * side**2 * side**2 // parts
    # Queries or keys of all heads; the folded form has 2 x side more channels, the padded one a multiple of 8.
    channels = CHANNELS // HEADS + (2 * side if form in (AttentionForm.FOLDED, AttentionForm.PADDED) else 0)
    projected = count * HEADS * side**2 * (-(-channels // 8) * 8 if form is AttentionForm.PADDED else channels)
    module = RelativePositionAttention(sam_attention(side, CHANNELS, HEADS).double(), form, GRID, window, parts)
    with torch.no_grad(), Sizes() as sizes:
        module(torch.zeros(1, GRID**2, CHANNELS, dtype=torch.float64))
    assert len(sizes.found) > 3
    assert max(sizes.found) <= max(scores, projected)
    assert scores in sizes.found
