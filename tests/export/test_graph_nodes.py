"""What exported graphs consist of: every operator that costs something is counted, and each count has its reason."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from tests.support.exported import Exported

COUNTED = (
    "LayerNormalization", "MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "Transpose", "Reshape", "Cast", "Sub",
    "Div", "Pad", "Slice", "Split", "Concat", "Expand", "Resize", "Gather",
    "BatchNormalization", "Identity", "Attention",
)  # fmt: skip

# Of the small model: one vision layer, one text layer, one windowed and one global block. Not one Sub: pixels are
# normalised by the patch embeddings' weights. Not one BatchNormalization, Identity or Expand.
WANTED: dict[Stage, dict[str, int]] = {
    Stage.SIGLIP_VISION: {
        "Cast": 1,  # of the image
        "Resize": 1,
        "Concat": 1,  # of the size that it resizes to
        "Conv": 1,
        "LayerNormalization": 3,
        "MatMul": 8,  # q, k, v, their two products, out, and two of the MLP
        "Softmax": 1,
        "Transpose": 5,  # patches to tokens; q, k, v to heads and back
        "Reshape": 5,  # as those
    },
    Stage.SIGLIP_TEXT: {
        "Cast": 1,  # of the token mask
        "Gather": 2,  # of a token's embedding, and of the last position
        "LayerNormalization": 3,
        "MatMul": 8,
        "Gemm": 1,  # the head
        "Softmax": 1,
        "Transpose": 4,
        "Reshape": 4,
    },
    Stage.ATTN_PROMPTER: {
        "Cast": 1,  # of the token mask
        "Div": 8,  # three L2 norms, the words' average, half of a sum, three GELUs
        "MatMul": 3,  # similarity of words and of the sentence, one projection of the features for all phrases
        "Split": 1,  # of that projection
        "Conv": 3,  # two strided ones and the last; the first is that projection
        "Transpose": 3,  # of the features, to products and to grids; of the prompts
        "Reshape": 3,
        "Resize": 1,
        "Concat": 1,  # of the size that it resizes to
    },
    Stage.SAM_ENCODER: {
        "Cast": 1,  # of the image
        "Conv": 2,  # patch embedding and the neck's 3 x 3; the neck's 1 x 1 is a MatMul
        "LayerNormalization": 6,
        "MatMul": 21,  # two blocks of qkv, two biases, two products, out, MLP; parts of queries; the neck's
        "Div": 2,  # GELUs
        "Softmax": 2,
        "Pad": 4,  # windows of q, k and v; room for the places of keys in the folded form
        "Slice": 1,  # of the padding, once for both axes
        "Concat": 1,
        "Transpose": 18,  # one of each block's keys, which runtimes make part of their product
        "Reshape": 25,  # as most of those; rows that padding is put behind
    },
    Stage.SAM_DECODER: {
        "LayerNormalization": 12,
        "MatMul": 52,  # seven attentions of six, two MLPs of two, five convolutions as products, mask of the token
        "Gemm": 3,  # of the hypernetwork
        "Gather": 1,  # of the mask token
        "Div": 4,  # GELUs
        "Softmax": 7,
        "Pad": 1,  # room for the output tokens
        "Transpose": 31,  # four of each attention, the image's tokens, the mask's pixels in and out
        "Reshape": 37,
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", Stage)
def test_a_graph_has_the_nodes_that_it_must_have_and_no_others(exported: Exported, stage: Stage) -> None:
    graph = onnx.load(Bundle.open(exported.bundle).graph_path(stage), load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node)
    assert {name: count for name, count in found.items() if name in COUNTED} == WANTED[stage]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("operator", ["Cast", "Transpose", "Reshape", "Slice"])
def test_no_node_takes_what_one_of_its_kind_has_just_made(exported: Exported, stage: Stage, operator: str) -> None:
    """Two casts, transposes or reshapes in a row are one, or none."""
    graph = onnx.load(Bundle.open(exported.bundle).graph_path(stage), load_external_data=False).graph
    uses = Counter(name for node in graph.node for name in node.input)
    makers = {name: node for node in graph.node for name in node.output if uses[name] == 1}
    pairs = [
        (makers[node.input[0]].name, node.name)
        for node in graph.node
        if node.op_type == operator and node.input[0] in makers and makers[node.input[0]].op_type == operator
    ]
    assert pairs == []


def optimised_by_onnxruntime(exported: Exported, stage: Stage, folder: Path) -> Counter[str]:
    """How many nodes of each kind ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    path = Bundle.open(exported.bundle).graph_path(stage)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def test_onnxruntime_turns_the_keys_of_sams_blocks_inside_their_product(exported: Exported, tmp_path: Path) -> None:
    path = Bundle.open(exported.bundle).graph_path(Stage.SAM_ENCODER)
    written = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    found = optimised_by_onnxruntime(exported, Stage.SAM_ENCODER, tmp_path)
    assert found["FusedMatMul"] == written["Softmax"]
    assert found["Transpose"] <= written["Transpose"] - 2  # one of each block


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        (Stage.SIGLIP_VISION, 1),
        (Stage.SIGLIP_TEXT, 1),
        (Stage.ATTN_PROMPTER, 3),
        (Stage.SAM_ENCODER, 2),
        (Stage.SAM_DECODER, 4),
    ],
)
def test_onnxruntime_makes_one_node_of_every_gelu(
    exported: Exported, tmp_path: Path, stage: Stage, wanted: int
) -> None:
    found = optimised_by_onnxruntime(exported, stage, tmp_path)
    assert found["Gelu"] + found["BiasGelu"] + found["FastGelu"] == wanted
    assert found["Erf"] + found["Tanh"] == 0
