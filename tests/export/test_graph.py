"""Exported graphs compute what PyTorch does, from nodes that runtimes know how to fuse."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.export.checks import check_graph
from rsrefseg.export.graph import FUSED_OPSET, OPSET, export_graph
from rsrefseg.export.precision.half_blocks import convert_to_half
from rsrefseg.export.settings import default_attention
from rsrefseg.inference.attention import AttentionForm, RelativePositionAttention
from rsrefseg.inference.fused_attention import FusedRelativePositionAttention
from rsrefseg.inference.operators import ErfGelu, TanhGelu
from rsrefseg.inference.projections import FoldedAttention
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.model import RSRefSeg, build_model
from rsrefseg.model.sam import ChannelLayerNorm
from rsrefseg.model.stages import model_contracts
from tests.support.small import small_config
from tests.support.stage_inputs import as_tuple, stage_inputs
from tests.support.upstream import sam_attention

# FP32 engines add in another order than PyTorch: a few roundings of 6e-8. 10% of what parity allows.
TOLERANCE = 1e-5


def nodes(bundle: Bundle, stage: Stage) -> list[onnx.NodeProto]:
    return list(onnx.load(bundle.graph_path(stage), load_external_data=False).graph.node)


def operators(bundle: Bundle, stage: Stage) -> Counter[str]:
    return Counter(node.op_type for node in nodes(bundle, stage))


def folded(model: RSRefSeg, stage: Stage) -> nn.Module:
    """The stage as it is exported."""
    return fold_for_inference(copy.deepcopy(model.stage(stage)), default_attention(model.config.sam))


def assert_same(path: Path, contract: StageContract, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The graph's outputs have the module's shapes and values."""
    with torch.no_grad():
        wanted = as_tuple(module(*inputs))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {spec.name: tensor.numpy() for spec, tensor in zip(contract.inputs, inputs, strict=True)})
    for spec, result, reference in zip(contract.outputs, found, wanted, strict=True):
        spec.check(result)
        assert result.shape == tuple(reference.shape)
        error = np.abs(result.astype(np.float64) - reference.double().numpy()).max()
        assert error <= TOLERANCE * reference.abs().max().item(), spec.name


OF_PHRASES = (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
OF_IMAGES = (Stage.SIGLIP_VISION, Stage.SAM_ENCODER)


@pytest.mark.parametrize(
    ("stage", "phrases", "images"),
    [(stage, phrases, 1) for stage in OF_PHRASES for phrases in (1, 2, 5)]
    + [(stage, 1, images) for stage in OF_IMAGES for images in (1, 2)],
)
def test_graphs_equal_pytorch(bundle: Bundle, model: RSRefSeg, stage: Stage, phrases: int, images: int) -> None:
    inputs = stage_inputs(model, stage, phrases, images)
    assert_same(bundle.graph_path(stage), model_contracts(model)[stage], model.stage(stage), inputs)


@pytest.mark.parametrize("stage", [Stage.SIGLIP_TEXT, Stage.SAM_DECODER])
def test_published_padding_and_no_dense_prompt_equal_pytorch(stage: Stage, tmp_path: Path) -> None:
    model = build_model(small_config(text_padding="longest", dense_prompt=False), seed=5)
    contract, module, path = model_contracts(model)[stage], model.stage(stage), tmp_path / f"{stage}.onnx"
    export_graph(module, contract, path)
    check_graph(path, contract)
    for phrases in (1, 2, 5):
        assert_same(path, contract, module, stage_inputs(model, stage, phrases))
    convert_to_half(stage, module)
    export_graph(module, contract, path)
    check_graph(path, contract)


def test_norms_and_softmaxes_are_whole_and_the_rest_is_folded(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    norms = sum(isinstance(module, nn.LayerNorm | ChannelLayerNorm) for module in model.stage(stage).modules())
    attentions = sum(
        isinstance(module, RelativePositionAttention | FoldedAttention) for module in folded(model, stage).modules()
    )
    found = operators(bundle, stage)
    assert (found["LayerNormalization"], found["Softmax"]) == (norms, attentions)
    assert not {"ReduceMean", "Sqrt", "InstanceNormalization", "ReduceSumSquare"} & found.keys()
    assert not {"Sub", "BatchNormalization", "Identity", "Expand"} & found.keys()
    assert found["Slice"] <= 1, "of the windows' padding, once for both axes"


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_for_cuda_every_attention_is_one_node(
    bundle: Bundle, fused_bundle: Bundle, fused_half_bundle: Bundle, stage: Stage, half: bool
) -> None:
    made = fused_half_bundle if half else fused_bundle
    records = bundle.manifest.stages[stage], made.manifest.stages[stage]
    assert [record.opset for record in records] == [OPSET, FUSED_OPSET]
    plain, fused = operators(bundle, stage), operators(made, stage)
    assert (plain["Attention"], fused["Softmax"]) == (0, 0)
    assert fused["Attention"] == plain["Softmax"]
    for node in nodes(made, stage):
        if node.op_type == "Attention":
            assert len(node.output) == 1, "a second output excludes flash attention"
            assert len(node.input) == 3, "a mask excludes flash attention"


def test_folded_attention_is_not_one_node(bundle: Bundle, mixed_bundle: Bundle) -> None:
    """ONNX Runtime 1.31 computes Attention wrongly on CUDA where keys have more channels than values."""
    for stage in Stage:
        plain, mixed = operators(bundle, stage), operators(mixed_bundle, stage)
        if stage is Stage.SAM_ENCODER:  # one additive windowed block, one folded global block in two parts
            assert (mixed["Attention"], mixed["Softmax"]) == (1, 2)
        else:
            assert (mixed["Attention"], mixed["Softmax"]) == (plain["Softmax"], 0)


def test_for_cuda_no_product_broadcasts_its_batch(fused_bundle: Bundle) -> None:
    """ONNX Runtime gives cuBLAS addresses in host memory for such products, which a CUDA graph must not contain."""
    contract = fused_bundle.manifest.stages[Stage.SAM_ENCODER].contract
    graph = check_graph(fused_bundle.graph_path(Stage.SAM_ENCODER), contract, FUSED_OPSET).graph
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    ranks |= {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    products = [[ranks[name] for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    assert products
    assert all(right == 2 or left == right == 3 for left, right in products)


@pytest.mark.parametrize("form", [AttentionForm.PADDED, AttentionForm.ADDITIVE])
@pytest.mark.parametrize("window", [3, 0], ids=["windowed", "global"])
def test_attention_of_one_node_equals_the_published_one(window: int, form: AttentionForm, tmp_path: Path) -> None:
    """Padded, queries, keys and values have the same number of channels, which all runtimes compute correctly."""
    original = sam_attention(window or 4)
    published = RelativePositionAttention(original, AttentionForm.PUBLISHED, 4, window)
    fused = FusedRelativePositionAttention(original, form, 4, window).eval()
    x, path = torch.randn(2, 16, 24), tmp_path / "attention.onnx"
    torch.onnx.export(fused, (x,), path, dynamo=True, opset_version=FUSED_OPSET, verbose=False)
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node if node.op_type in ("Attention", "Softmax")] == ["Attention"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {graph.input[0].name: x.numpy()})
    wanted = published(x).detach().numpy()
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_nodes_are_named_after_the_modules_they_come_from(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    names = [node.name for node in nodes(bundle, stage)]
    modules = dict(folded(model, stage).named_modules())
    assert len(set(names)) == len(names)
    assert all(name.rpartition("/")[0] in modules for name in names)
    assert sum(name.startswith("/") for name in names) < len(names)


def test_no_node_takes_what_one_of_its_kind_has_just_made(bundle: Bundle, stage: Stage) -> None:
    """Two casts, transposes or reshapes in a row are one, or none."""
    graph = nodes(bundle, stage)
    uses = Counter(name for node in graph for name in node.input)
    makers = {name: node.op_type for node in graph for name in node.output if uses[name] == 1}
    moves = ("Cast", "Transpose", "Reshape", "Slice")
    assert [node.name for node in graph if node.op_type in moves and makers.get(node.input[0]) == node.op_type] == []


def test_onnxruntime_fuses_gelu_and_transposes(bundle: Bundle, model: RSRefSeg, tmp_path: Path, stage: Stage) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(bundle.graph_path(stage), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node)
    gelus = sum(isinstance(module, ErfGelu | TanhGelu) for module in folded(model, stage).modules())
    assert found["Gelu"] + found["BiasGelu"] + found["FastGelu"] == gelus
    assert found["Erf"] + found["Tanh"] == 0
    if stage is Stage.SAM_ENCODER:
        assert default_attention(model.config.sam).whole is AttentionForm.ADDITIVE
        assert found["FusedMatMul"] == operators(bundle, stage)["Softmax"]
