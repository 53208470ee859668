"""The checks find, by node, what is not the contract, what engines cannot build and what half precision spoils."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, stage_contracts
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.export.checks import check_graph, find_faults
from rsrefseg.export.graph import FUSED_OPSET, OPSET
from rsrefseg.model.model import geometry
from tests.support.small import small_config

FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
INT64, UINT8 = TensorProto.INT64, TensorProto.UINT8
CONTRACTS = stage_contracts(geometry(small_config()))
TEXT = CONTRACTS[Stage.SIGLIP_TEXT]
(IDS, MASK), (WORDS, SENTENCE) = TEXT.inputs, TEXT.outputs


def test_exported_graphs_pass(
    bundle: Bundle, half_bundle: Bundle, fused_bundle: Bundle, fused_half_bundle: Bundle, stage: Stage
) -> None:
    for one in (bundle, half_bundle, fused_bundle, fused_half_bundle):
        record = one.manifest.stages[stage]
        assert record.contract == CONTRACTS[stage]
        check_graph(one.graph_path(stage), record.contract, record.opset)


@pytest.mark.parametrize(
    ("contract", "key"),
    [
        (replace(TEXT, inputs=(MASK, IDS)), "inputs input_ids, token_mask"),
        (replace(TEXT, outputs=(replace(WORDS, name="words"), SENTENCE)), "outputs word_features, sentence_feature"),
        (replace(TEXT, inputs=(replace(IDS, dtype="uint8"), MASK)), "'input_ids' as INT64"),
        (replace(TEXT, inputs=(IDS, replace(MASK, shape=(2, 12)))), "'token_mask'"),
        (replace(TEXT, inputs=(replace(IDS, shape=(Dim("batch", 1, 1, 32), 12)), MASK)), "'input_ids'"),
        (replace(TEXT, outputs=(replace(WORDS, shape=(*WORDS.shape[:2], 25)), SENTENCE)), "'word_features'"),
    ],
    ids=["order", "name", "type", "fixed size", "name of a size", "size"],
)
def test_a_graph_that_is_not_its_contract_is_refused(bundle: Bundle, contract: StageContract, key: str) -> None:
    with pytest.raises(CheckFailedError, match=f"siglip_text.*{key}"):
        check_graph(bundle.graph_path(Stage.SIGLIP_TEXT), contract)


def test_a_graph_with_a_fault_or_that_is_not_valid_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match=r"siglip_text.*opset 18, not 23"):
        check_graph(bundle.graph_path(Stage.SIGLIP_TEXT), TEXT, FUSED_OPSET)
    onnx.save(graph_of(node("Nonsense", ["x"])), tmp_path / "graph.onnx")
    with pytest.raises(CheckFailedError, match=r"siglip_text.*not valid ONNX"):
        check_graph(tmp_path / "graph.onnx", TEXT)
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"], "the check leaves nothing behind"


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"block.attn/{operator}", **attributes)


def graph_of(*nodes: NodeProto, kind: int = FLOAT, opset: int = OPSET, **weights: np.ndarray) -> ModelProto:
    """A graph from ``x`` (2, 3, 4, 4) of ``kind`` and ``count`` (4,) int64 to ``y``, all types inferred."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", kind, (2, 3, 4, 4)), helper.make_tensor_value_info("count", INT64, (4,))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets), data_prop=True)


def indices(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def branch() -> ModelProto:
    output = helper.make_tensor_value_info("inside", TensorProto.BOOL, None)
    body = helper.make_graph([helper.make_node("Identity", ["yes"], ["inside"])], "body", [], [output])
    return graph_of(node("If", ["yes"], then_branch=body, else_branch=body), yes=np.array(True))


def function() -> ModelProto:
    model, opset = graph_of(node("Relu", ["x"])), helper.make_opsetid("", OPSET)
    model.functions.append(helper.make_function("own", "Same", ["x"], ["y"], [node("Identity", ["x"])], [opset]))
    return model


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (branch(), "control flow"),
        (function(), "'Same'"),
        (graph_of(node("Gelu", ["x"], domain="com.microsoft")), "com.microsoft"),
        (graph_of(node("Relu", ["x"]), opset=21), "opset 21"),
        (graph_of(node("Softmax", ["x"]), kind=DOUBLE), "float64"),
        (graph_of(node("Cast", ["x"], ["z"], to=DOUBLE), node("Cast", ["z"], to=FLOAT)), "'z' in float64"),
        (graph_of(node("Constant", [], value=numpy_helper.from_array(np.zeros(1)))), "float64"),
        (graph_of(node("Relu", ["x"]), wide=np.zeros(1)), "'wide' in float64"),
        (graph_of(node("Tile", ["x", "n"]), kind=UINT8, n=indices(1, 1, 1, 2)), "uint8"),
        (graph_of(node("ReduceL2", ["x", "a"]), kind=HALF, a=indices(1)), "ReduceL2 in half"),
        (
            graph_of(node("LayerNormalization", ["x", "w"]), kind=HALF, w=np.ones(4, np.float16)),
            "LayerNormalization in half",
        ),
        (graph_of(node("Add", ["x", "w"]), kind=HALF, w=np.float16([np.inf])), "'w' beyond"),
        (graph_of(node("Resize", ["x", "", "", "count"], mode="linear")), "'count'"),
        (graph_of(node("Reshape", ["x", "count"])), "'count'"),
    ],
)
def test_faults_are_found(model: ModelProto, key: str, tmp_path: Path) -> None:
    assert any(key in fault for fault in find_faults(model, tmp_path)), list(find_faults(model, tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        graph_of(
            node("Shape", ["x"], ["shape"]),
            node("Mul", ["shape", "two"], ["twice"]),
            node("Expand", ["small", "twice"], ["wide"]),
            node("ReduceMean", ["wide", "axes"], ["y"]),
            two=indices(2),
            small=np.zeros((1, 1, 1, 1), np.float32),
            axes=indices(1),
        ),
        graph_of(node("Cast", ["x"], ["z"], to=FLOAT), node("Sqrt", ["z"]), kind=UINT8),
    ],
    ids=["computed sizes and a plain mean", "a cast of an uint8 input"],
)
def test_what_is_no_fault_passes(model: ModelProto, tmp_path: Path) -> None:
    assert list(find_faults(model, tmp_path)) == []
