"""Export: five graphs that are what their contracts say and compute what PyTorch does, in a bundle or not at all."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rsrefseg.checkpoints.model_file import load_model
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, stage_contracts
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.export.checks import check_graph
from rsrefseg.export.flops import count_flops
from rsrefseg.export.graph import OPSET, example_input, export_graph
from rsrefseg.inference.attention import AttentionChoice, default_attention
from rsrefseg.inference.stages import make_lean
from rsrefseg.model.config import model_config
from rsrefseg.model.model import RSRefSeg, build_model, build_stage, geometry
from rsrefseg.model.sam import ChannelLayerNorm
from rsrefseg.model.stages import model_contracts
from rsrefseg.runs.run import Run
from tests.support.exported import Exported
from tests.support.small import small_config

# FP32 engines add in another order than PyTorch: a few roundings of 6e-8. A tenth of what parity allows.
TOLERANCE = 1e-5
PHRASES = ("the red box", "the blue box", "white box", "the green box", "box")
PLAIN = AttentionChoice()
DTYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float32": TensorProto.FLOAT,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture(scope="module")
def model(exported: Exported) -> RSRefSeg:
    return load_model(Run(exported.run).merged_path)


def graph_of(bundle: Bundle, stage: Stage) -> onnx.ModelProto:
    return onnx.load(bundle.graph_path(stage))


def lean(model: RSRefSeg, stage: Stage) -> nn.Module:
    """The stage as it is exported."""
    return make_lean(copy.deepcopy(model.stage(stage)), default_attention(model.config.sam))


# The graphs


@pytest.mark.parametrize("stage", Stage)
def test_a_graphs_face_is_its_contract(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    record = bundle.manifest.stages[stage]
    contract = stage_contracts(geometry(model.config))[stage]
    assert record.contract == contract
    graph = graph_of(bundle, stage).graph
    for specs, values in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == DTYPES[spec.dtype]
            assert [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] == [
                size.name if isinstance(size, Dim) else size for size in spec.shape
            ]


@pytest.mark.parametrize("stage", Stage)
def test_graphs_are_valid_and_all_shapes_can_be_derived(bundle: Bundle, stage: Stage) -> None:
    path = bundle.graph_path(stage)
    onnx.checker.check_model(str(path), full_check=True)
    proto = graph_of(bundle, stage)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    assert OPSET >= 17
    assert {node.domain for node in proto.graph.node} == {""}


@pytest.mark.parametrize("stage", Stage)
def test_layer_norms_are_whole_nodes(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    modules = model.stage(stage).modules()
    norms = sum(isinstance(module, nn.LayerNorm | ChannelLayerNorm) for module in modules)
    operators = Counter(node.op_type for node in graph_of(bundle, stage).graph.node)
    assert operators["LayerNormalization"] == norms
    assert not {"ReduceMean", "Sqrt", "InstanceNormalization", "ReduceSumSquare"} & operators.keys()
    assert operators["Pow"] <= operators["Tanh"], "a square that is not part of a GELU"


def test_the_model_has_layer_norms_to_find(model: RSRefSeg) -> None:
    towers = [model.stage(stage) for stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT)]
    assert all(any(isinstance(module, nn.LayerNorm) for module in tower.modules()) for tower in towers)
    for stage in (Stage.SAM_ENCODER, Stage.SAM_DECODER):
        assert any(isinstance(module, ChannelLayerNorm) for module in model.stage(stage).modules())


@pytest.mark.parametrize("stage", Stage)
def test_nothing_is_computed_in_float64(bundle: Bundle, stage: Stage) -> None:
    proto = onnx.shape_inference.infer_shapes(graph_of(bundle, stage), strict_mode=True)
    kinds = {value.type.tensor_type.elem_type for value in proto.graph.value_info}
    kinds |= {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {attribute.t.data_type for node in proto.graph.node for attribute in node.attribute if attribute.t.dims}
    assert TensorProto.FLOAT in kinds
    assert TensorProto.DOUBLE not in kinds


@pytest.mark.parametrize("stage", Stage)
def test_nodes_are_named_after_the_modules_they_come_from(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    names = [node.name for node in graph_of(bundle, stage).graph.node]
    assert len(set(names)) == len(names)
    modules = dict(lean(model, stage).named_modules())
    assert all(name.rpartition("/")[0] in modules for name in names)
    assert sum(name.startswith("/") for name in names) < len(names)


# What they compute


def run_graph(path: Path, feeds: dict[str, Tensor]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


def assert_same(path: Path, contract: StageContract, module: nn.Module, feeds: dict[str, Tensor]) -> None:
    """The graph gives what the module gives, in its shapes; each value apart, whatever the others are."""
    given = {spec.name: feeds[spec.name] for spec in contract.inputs}
    with torch.no_grad():
        wanted = module(*given.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = run_graph(path, given)
    for spec, result, reference in zip(contract.outputs, found, wanted, strict=True):
        spec.check(result)
        assert result.shape == tuple(reference.shape)
        error = np.abs(result.astype(np.float64) - reference.double().numpy()).max()
        assert error <= TOLERANCE * reference.abs().max().item(), spec.name


def feeds_for(model: RSRefSeg, run_path: Path, phrases: int, images: int = 1) -> dict[str, Tensor]:
    """Random pictures and features, real phrases: inputs of every stage."""
    noise = torch.Generator().manual_seed(phrases)
    config = model.config
    tokenizer = Tokenizer(
        run_path / "tokenizer.json", config.siglip.text_length, config.text_padding, config.siglip.pad_token_id
    )
    tokens = tokenizer.encode(PHRASES[:phrases])
    side = config.sam.image_size
    image = torch.randint(0, 256, (images, 3, side, side), generator=noise, dtype=torch.uint8)
    feeds = {
        "image": image,
        "input_ids": torch.from_numpy(tokens.input_ids),
        "token_mask": torch.from_numpy(tokens.token_mask),
    }
    for contract in model_contracts(model).values():
        for spec in contract.outputs:
            sizes = {"phrases": phrases, "images": 1}
            feeds[spec.name] = torch.randn(spec.sized(**sizes), generator=noise)
    return feeds


@pytest.mark.parametrize("phrases", [1, 2, 5])
@pytest.mark.parametrize("stage", [Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER])
def test_graphs_of_phrases_equal_pytorch(
    bundle: Bundle, model: RSRefSeg, exported: Exported, stage: Stage, phrases: int
) -> None:
    feeds = feeds_for(model, exported.run, phrases)
    assert_same(bundle.graph_path(stage), model_contracts(model)[stage], model.stage(stage), feeds)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("stage", [Stage.SIGLIP_VISION, Stage.SAM_ENCODER])
def test_graphs_of_images_equal_pytorch(
    bundle: Bundle, model: RSRefSeg, exported: Exported, stage: Stage, images: int
) -> None:
    feeds = feeds_for(model, exported.run, 1, images)
    assert_same(bundle.graph_path(stage), model_contracts(model)[stage], model.stage(stage), feeds)


@pytest.fixture(scope="module")
def other_choices(tmp_path_factory: pytest.TempPathFactory) -> tuple[RSRefSeg, Path]:
    """A model with the published padding and without dense prompt, and the two graphs that differ by that."""
    folder = tmp_path_factory.mktemp("choices")
    model = build_model(small_config(text_padding="longest", dense_prompt=False), seed=5)
    for stage in (Stage.SIGLIP_TEXT, Stage.SAM_DECODER):
        contract = model_contracts(model)[stage]
        export_graph(model.stage(stage), contract, folder / f"{stage}.onnx")
        check_graph(folder / f"{stage}.onnx", contract)
    return model, folder


@pytest.mark.parametrize("phrases", [1, 2, 5])
@pytest.mark.parametrize("stage", [Stage.SIGLIP_TEXT, Stage.SAM_DECODER])
def test_published_padding_and_no_dense_prompt_equal_pytorch_too(
    other_choices: tuple[RSRefSeg, Path], exported: Exported, stage: Stage, phrases: int
) -> None:
    model, folder = other_choices
    feeds = feeds_for(model, exported.run, phrases)
    assert_same(folder / f"{stage}.onnx", model_contracts(model)[stage], model.stage(stage), feeds)


def test_the_choices_make_a_difference(
    bundle: Bundle, other_choices: tuple[RSRefSeg, Path], exported: Exported
) -> None:
    """Or else the tests above would prove nothing: with the other policy the same weights answer otherwise."""
    model, folder = other_choices
    fixed = build_model(small_config(dense_prompt=True), seed=5)
    feeds = feeds_for(model, exported.run, 2)
    (logits,) = run_graph(
        folder / "sam_decoder.onnx",
        {name: feeds[name] for name in ("image_embedding", "sparse_prompts", "mask_prompt")},
    )
    _, sentence = run_graph(folder / "siglip_text.onnx", {name: feeds[name] for name in ("input_ids", "token_mask")})
    with torch.no_grad():
        dense = fixed.sam_decoder(feeds["image_embedding"], feeds["sparse_prompts"], feeds["mask_prompt"])
        _, other_sentence = fixed.siglip_text(feeds["input_ids"], feeds["token_mask"])
    assert np.abs(logits - dense.numpy()).max() > 1e-3
    assert np.abs(sentence - other_sentence.numpy()).max() > 1e-3


def torch_flops(module: nn.Module, contract: StageContract) -> int:
    inputs = [example_input(spec)[:1] for spec in contract.inputs]  # one image, one phrase: the optimum
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("stage", Stage)
def test_flops_agree_with_pytorchs_own_count(bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    record = bundle.manifest.stages[stage]
    assert record.flops == pytest.approx(torch_flops(lean(model, stage), record.contract), rel=0.001)
    assert record.flops == count_flops(bundle.graph_path(stage), record.contract)
    saved = 0
    if stage is Stage.SAM_ENCODER:
        # One block has windows of 3 over 4 x 4 tokens: 20 of 36 are padding, for which nothing is projected.
        saved = 20 * 2 * 4 * model.config.sam.embed_dim**2
    published = torch_flops(model.stage(stage), record.contract)
    assert record.flops + saved == pytest.approx(published, rel=0.02)


# The published arithmetic, GFLOP for one image and one phrase.
@pytest.mark.parametrize(
    ("preset", "stage", "gflop", "share"),
    [
        ("b", Stage.SIGLIP_VISION, 666, 1.0),
        ("b", Stage.SIGLIP_TEXT, 53, 1.0),
        ("b", Stage.SAM_DECODER, 4.4, 1.0),
        ("b", Stage.SAM_ENCODER, 972, 0.968),
        ("l", Stage.SAM_ENCODER, 2986, 0.955),
    ],
)
def test_at_full_size_the_flops_are_the_published_ones_less_what_padding_took(
    preset: str, stage: Stage, gflop: float, share: float
) -> None:
    """Counted on modules without memory, those that are exported and those that were published.

    Of 70 x 70 tokens in windows of 14, 804 are padding. The published blocks project them, 8 (-b) or 20 (-l) times.
    """
    config = model_config(preset)
    contract = stage_contracts(geometry(config))[stage]
    with torch.device("meta"):
        published, leaner = build_stage(stage, config).eval(), make_lean(build_stage(stage, config).eval(), PLAIN)
        counts = [torch_flops(module, contract) / 1e9 for module in (published, leaner)]
    assert counts[0] == pytest.approx(gflop, rel=0.02)
    assert counts[1] == pytest.approx(share * counts[0], rel=0.005)


def test_flops_of_a_size_nobody_knows_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """A count that leaves something out would be taken for the truth."""
    contract = bundle.manifest.stages[Stage.SIGLIP_TEXT].contract
    proto = graph_of(bundle, Stage.SIGLIP_TEXT)
    product = next(node for node in proto.graph.node if node.op_type == "MatMul")
    rows = helper.make_node("NonZero", [product.input[0]], ["rows"])
    cast = helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT)
    again = helper.make_node("MatMul", ["floats", "floats"], ["unknown"], name="odd")
    proto.graph.node.extend([rows, cast, again])
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(CheckFailedError, match="odd"):
        count_flops(tmp_path / "odd.onnx", contract)


# Planted faults


def wrong_name(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "words"
    for node in proto.graph.node:
        node.output[:] = ["words" if name == "word_features" else name for name in node.output]


def wrong_order(proto: onnx.ModelProto) -> None:
    first, second = list(proto.graph.input)
    del proto.graph.input[:]
    proto.graph.input.extend([second, first])


def wrong_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def fixed_size(proto: onnx.ModelProto) -> None:
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2


def other_dimension_name(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def add_nodes(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    proto.graph.node.extend(nodes)


def float64_in_between(proto: onnx.ModelProto) -> None:
    add_nodes(
        proto,
        helper.make_node("Cast", ["word_features"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Sqrt", ["wide"], ["root"]),
    )


def float64_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(helper.make_tensor("wide", TensorProto.DOUBLE, [1], [1.0]))


def float64_constant(proto: onnx.ModelProto) -> None:
    value = helper.make_tensor("value", TensorProto.DOUBLE, [1], [1.0])
    add_nodes(proto, helper.make_node("Constant", [], ["wide"], name="wide", value=value))


def other_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    add_nodes(proto, helper.make_node("Gelu", ["word_features"], ["odd"], domain="com.microsoft"))


def a_branch(proto: onnx.ModelProto) -> None:
    output = helper.make_tensor_value_info("inside", TensorProto.BOOL, None)
    body = helper.make_graph([helper.make_node("Identity", ["yes"], ["inside"])], "body", [], [output])
    proto.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    add_nodes(proto, helper.make_node("If", ["yes"], ["odd"], then_branch=body, else_branch=body))


def a_function(proto: onnx.ModelProto) -> None:
    opset = helper.make_opsetid("", OPSET)
    node = helper.make_node("Identity", ["x"], ["y"])
    proto.functions.append(helper.make_function("own", "Same", ["x"], ["y"], [node], [opset]))
    proto.opset_import.append(helper.make_opsetid("own", 1))


def no_such_operator(proto: onnx.ModelProto) -> None:
    add_nodes(proto, helper.make_node("Nonsense", ["word_features"], ["odd"]))


def a_size_that_contradicts(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value += 1


FAULTS: dict[Callable[[onnx.ModelProto], None], str] = {
    wrong_name: "has the outputs words",
    wrong_order: "has the inputs token_mask, input_ids",
    wrong_type: "'input_ids' is INT32|not valid ONNX",
    fixed_size: "'token_mask' is BOOL",
    other_dimension_name: "'input_ids' is INT64",
    float64_in_between: "'wide' in float64",
    float64_weight: "'wide' in float64",
    float64_constant: "'wide' in float64",
    other_domain: "'Gelu' of the domain 'com.microsoft'|not valid ONNX",
    a_branch: "graph inside",
    a_function: "function 'Same'",
    no_such_operator: "not valid ONNX",
    a_size_that_contradicts: "not valid ONNX|'word_features' is FLOAT",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_graph_that_is_not_what_it_should_be_is_refused(
    bundle: Bundle, tmp_path: Path, fault: Callable[[onnx.ModelProto], None]
) -> None:
    contract = bundle.manifest.stages[Stage.SIGLIP_TEXT].contract
    proto = graph_of(bundle, Stage.SIGLIP_TEXT)
    path = tmp_path / "siglip_text.onnx"
    onnx.save(proto, path)
    check_graph(path, contract)
    fault(proto)
    onnx.save(proto, path)
    with pytest.raises(CheckFailedError, match=FAULTS[fault]) as refusal:
        check_graph(path, contract)
    assert "siglip_text" in str(refusal.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "the check leaves nothing behind"
