"""No form of attention holds more at a time than it must: the scores of one part, or its queries, keys and values."""

import itertools
import math
from pathlib import Path

import onnx
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from rsrefseg.inference.attention import AttentionForm, RelativePositionAttention

CHANNELS, HEADS, GRID, WINDOW = 48, 4, 16, 6
WINDOWS = math.ceil(GRID / WINDOW) ** 2


def intermediate_sizes(form: AttentionForm, window: int, parts: int, path: Path) -> dict[str, int]:
    """Numbers in every value that one image's block computes, by name; derived from the exported graph alone."""
    side = window or GRID
    original = Attention(CHANNELS, HEADS, use_rel_pos=True, input_size=(side, side)).eval()
    module = RelativePositionAttention(original, form, GRID, window, parts).eval()
    with torch.no_grad():
        program = torch.onnx.export(
            module, (torch.zeros(1, GRID**2, CHANNELS),), dynamo=True, opset_version=18, verbose=False
        )
    assert program is not None
    program.save(path)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    return {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in graph.value_info
    }


@pytest.mark.parametrize(
    ("form", "window", "parts"),
    [*itertools.product(AttentionForm, (0,), (1, 4, 16)), *itertools.product(AttentionForm, (WINDOW,), (1, 2))],
)
def test_the_largest_value_is_the_scores_of_one_part_or_what_they_are_made_of(
    form: AttentionForm, window: int, parts: int, tmp_path: Path
) -> None:
    side, count = window or GRID, WINDOWS if window else 1
    scores = count * HEADS * side**2 * side**2 // parts
    # Queries or keys of all heads; the folded form has 2 x side more channels.
    extra = 2 * side if form is AttentionForm.FOLDED else 0
    projected = count * HEADS * side**2 * (CHANNELS // HEADS + extra)
    sizes = intermediate_sizes(form, window, parts, tmp_path / "block.onnx")
    assert len(sizes) > 20
    assert all(size > 0 for size in sizes.values())
    assert max(sizes.values()) <= max(scores, projected)
    assert scores in sizes.values()
